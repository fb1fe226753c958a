"""A training step, act, verify, learn: as one program, or split at the verifier.

`act` makes the rollout without its verdict: it samples, or reads stored answers, and
measures the reference. `fused` and `split` give the same numbers. For another dataflow
copy these few lines and edit them.
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh

from rljax import check, keys, mesh, metric, numerics, verdict
from rljax.advantage import solve_rate
from rljax.learn import origin
from rljax.learn.update import Learner
from rljax.model import DecoderConfig
from rljax.policy import returned
from rljax.policy.base import Policy
from rljax.policy.frozen import joined
from rljax.types import (
    Measure,
    Prompts,
    Rollout,
    Sampler,
    Samples,
    TokenStats,
    TrainState,
    Verdict,
    Verify,
    is_measured,
)

Act = Callable[[TrainState, Prompts], Rollout]
"""(state, prompts [P, ...]) -> a rollout without its verdict."""

Teacher = Callable[[TrainState, Prompts, Samples], TokenStats]
"""(state, prompts, samples) -> the teacher's statistics of the samples' tokens."""

Run = Callable[[TrainState, Prompts], tuple[TrainState, dict[str, Any]]]
"""(state, prompts [K, P, ...]) -> (state, metrics [K]), after K training steps."""


def actor(
    policy: Policy,
    sample: Sampler,
    *,
    measure_old: Measure | None = None,
    teacher: Teacher | None = None,
) -> Act:
    """Makes the act: it samples, and measures reference and teacher.

    The reference is measured if the state holds its parameters. With the sampler
    `mixed.stored_answers()` the rollouts are demonstrations.

    Args:
      policy: measures the reference.
      sample: (params, prompts, key) -> (samples, old), a sampler of the policy.
      measure_old: (params, prompts, samples) -> TokenStats, replaces the sampler's
        statistics as `rollout.old`. Needed when a method reads values, or when the
        sampler differs from the policy by design.
      teacher: (state, prompts, samples) -> TokenStats, becomes `rollout.teacher`.

    Returns:
      (state, prompts) -> a rollout without its verdict.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.function("sample", sample, "params, prompts, key")
    if measure_old is not None:
        check.function("measure_old", measure_old, "params, prompts, samples")
    if teacher is not None:
        check.function("teacher", teacher, "state, prompts, samples")

    def act(state, prompts):
        key = keys.of_step(state.key, state.step)
        params = joined(state.params, state.frozen)
        # The sampler's shardings end here, so that the update's do not extend into it.
        drawn = returned.drawn(sample(params, prompts, key), prompts)
        samples, old = mesh.constrain(drawn)
        if measure_old is not None:
            old = measure_old(params, prompts, samples)
            old = returned.statistics(old, samples, "measure_old")
        rollout = Rollout(prompts=prompts, samples=samples, old=old)
        if is_measured(old):
            rollout = rollout.replace(origin=origin.of(state.params, old))
        if teacher is not None:
            told = teacher(state, prompts, samples)
            told = returned.statistics(told, samples, "the teacher")
            rollout = rollout.replace(teacher=told)
        if state.reference is not None:
            reference = joined(state.reference, state.frozen)
            stats = policy.measure(reference, prompts, samples)
            stats = returned.statistics(stats, samples, "the policy's measure")
            rollout = rollout.replace(reference=stats)
        return rollout

    return act


def fused(act: Act, learner: Learner, verify: Verify | None = None) -> Run:
    """K training steps in one XLA program: `lax.scan(step, state, prompts)`.

    Args:
      act: makes the rollout.
      learner: learns from it.
      verify: a traceable verifier; None for supervised terms, which read no verdict.

    Returns:
      (state, prompts [K, P, ...]) -> (state, metrics [K]). The state is donated: do not
      use it after the call.
    """
    check.function("act", act, "state, prompts")
    check.kind("learner", learner, Learner, "update.learner(...)")
    if verify is not None:
        check.function("verify", verify, "prompts, samples")

    def step(state, prompts):
        state = mesh.keep_state(state)
        rollout = verdict.in_graph(verify, act(state, mesh.constrain(prompts)))
        state, metrics = learner.learn(state, mesh.constrain(rollout))
        return mesh.keep_state(state), metrics | rollout_metrics(rollout)

    def steps(state, prompts):
        state, metrics = jax.lax.scan(step, state, prompts)
        return mesh.keep_state(state), metrics

    return jax.jit(steps, donate_argnums=0)


def split(act: Act, learner: Learner, verify: Verify) -> Run:
    """The same training steps with a verifier in Python: two programs per step.

    With several processes each verifies a share of the prompts: see `verdict.shared`.

    Args:
      act: makes the rollout.
      learner: learns from it.
      verify: (prompts, samples) -> Verdict, all of NumPy arrays.

    Returns:
      As `fused`.
    """
    if isinstance(verify, contextlib.AbstractContextManager):
        raise ValueError(
            f"verify must be a function, got the context manager {verify!r}; pass what"
            " `with` gives: `with pooled(...) as verify:`."
        )
    check.function("act", act, "state, prompts")
    check.kind("learner", learner, Learner, "update.learner(...)")
    check.function("verify", verify, "prompts, samples")
    start = jax.jit(lambda state, prompts: act(state, mesh.constrain(prompts)))

    def finish(state, rollout):
        state, metrics = learner.learn(state, mesh.constrain(rollout))
        return mesh.keep_state(state), metrics | rollout_metrics(rollout)

    finish = jax.jit(finish, donate_argnums=0)

    def run(state, prompts):
        rows = []
        for k in range(prompts.tokens.shape[0]):
            rollout = start(state, jax.tree.map(lambda x, k=k: x[k], prompts))
            rollout = verdict.on_host(verify, rollout)
            state, metrics = finish(state, rollout)
            rows.append(metrics)
        return state, jax.tree.map(lambda *x: jnp.stack(x), *rows)

    return run


class Sizes(NamedTuple):
    """The sizes of a training step, named as in the sampler and the learner.

    decoder: configuration of the policy.
    prompt_tokens: S, padding included.
    num_rows: completions decoded at a time; fewer than P * G if the sampler has slots.
    """

    decoder: DecoderConfig
    num_prompts: int
    num_samples: int
    prompt_tokens: int
    max_tokens: int
    num_rows: int
    num_passes: int = 1
    num_minibatches: int = 1
    num_microbatches: int = 1
    num_group_parts: int = 1

    @property
    def num_prompt_pieces(self) -> int:
        """Number of pieces that the prompts of a rollout batch are cut into."""
        return self.num_minibatches * self.num_microbatches

    @property
    def num_pieces(self) -> int:
        """Number of pieces of a rollout batch; one is in memory at a time."""
        return self.num_prompt_pieces * self.num_group_parts

    @property
    def num_rounds(self) -> float:
        """Number of completions per decoded row."""
        return self.num_prompts * self.num_samples / self.num_rows


class Program(NamedTuple):
    """What a run is going to compile: a training step, its evaluations, their shapes.

    act, learner: parts of the training step.
    verify: a traceable verifier; with `glue=split` a function of NumPy arrays.
    state, prompts [K, P, ...]: pytrees of jax.ShapeDtypeStruct.
    decoder: configuration of the policy.
    glue: `fused` or `split`, (act, learner, verify) -> run.
    others: further compiled functions by name, such as the evaluations, each with the
      shapes of its arguments: (fn, (params, batch)).
    place, layout: the mesh, and how everything is spread over it; no mesh is the
      default device.
    """

    act: Act
    learner: Learner
    verify: Verify | None
    state: Any
    prompts: Prompts
    decoder: DecoderConfig
    glue: Callable[..., Run] = fused
    others: Mapping[str, tuple[Callable, tuple]] = MappingProxyType({})
    place: Mesh | None = None
    layout: mesh.Layout = mesh.PLAIN

    @property
    def num_devices(self) -> int:
        """Devices of the mesh; 1 without a mesh."""
        return 1 if self.place is None else self.place.size

    def run(self) -> Run:
        """The loop; each call makes a new one, which is compiled again."""
        return self.glue(self.act, self.learner, self.verify)

    def fused(self) -> jax.stages.Wrapped:
        """The loop as one program; a Python verifier is replaced by a placeholder."""
        return cast(jax.stages.Wrapped, fused(self.act, self.learner, self.in_graph()))

    def in_graph(self) -> Verify | None:
        """The verifier, or a placeholder for one that cannot be traced."""
        return _all_wrong if self.glue is split else self.verify

    def lower(self, name: str | None = None) -> jax.stages.Lowered:
        """The training step, lowered for the mesh or for the default device.

        Args:
          name: lowers this one of `others` instead.
        """
        on = self.place, self.layout
        with mesh.using(*on):
            if name is None:
                prompts = mesh.shapes.split(self.prompts, *on, axis=1)
                return self.fused().lower(mesh.shapes.stored(self.state, *on), prompts)
            fn, (params, batch) = self.others[name]
            batch = mesh.shapes.raised(batch, self.num_devices)
            return jax.jit(fn).lower(mesh.shapes.stored(params, *on), batch)

    def compile(self, name: str | None = None) -> jax.stages.Compiled:
        """As `lower`, then compiled, to read its memory and cost; not to be run."""
        options: dict[str, bool | str] = {}
        # On CPUs LLVM takes most of the time and does not change memory or cost.
        if jax.default_backend() == "cpu":
            options["xla_backend_optimization_level"] = "0"
        return self.lower(name).compile(options)

    def batch(self) -> Prompts:
        """The shapes of the prompts of one training step, [P, ...]."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.prompts
        )

    def sizes(self) -> Sizes:
        """The sizes of a training step, found by tracing the act."""
        traced, rollout = jax.make_jaxpr(self.act, return_shape=True)(
            self.state, self.batch()
        )
        num_prompts, num_samples, max_tokens = rollout.samples.tokens.shape
        rows = num_prompts * num_samples
        repeats = self.learner.repeats
        return Sizes(
            decoder=self.decoder,
            num_prompts=num_prompts,
            num_samples=num_samples,
            prompt_tokens=self.prompts.tokens.shape[2],
            max_tokens=max_tokens,
            num_rows=min(rows, _rows_decoded(traced.jaxpr) or rows),
            num_passes=repeats.num_passes,
            num_minibatches=repeats.num_minibatches,
            num_microbatches=repeats.num_microbatches,
            num_group_parts=repeats.num_group_parts,
        )


def _all_wrong(prompts: Prompts, samples: Samples) -> Verdict:
    """Takes the place of a verifier that cannot be traced."""
    del prompts
    return Verdict.binary(jnp.zeros(samples.tokens.shape[:2], bool))


def _rows_decoded(jaxpr: core.Jaxpr, looped: bool = False) -> int:
    """Rows of the matmuls with weights inside `while` loops; 0 if there are none."""
    rows = 0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if looped and name == "dot_general":
            (_, contracted), (_, batch) = eqn.params["dimension_numbers"]
            weights = cast(Any, eqn.invars[1].aval).shape
            kept = set(range(len(weights))) - {*contracted, *batch}
            if not batch:  # attention has a batch axis, weights have none
                width = math.prod(weights[i] for i in kept)
                rows = max(rows, cast(Any, eqn.outvars[0].aval).size // width)
        for inner in core.jaxprs_in_params(eqn.params):
            rows = max(rows, _rows_decoded(inner, looped or name == "while"))
    return rows


def rollout_metrics(rollout: Rollout) -> dict[str, Any]:
    """Metrics of a rollout that every run logs; lengths in tokens, shares in [0, 1].

    Rewards and solve rates count verified samples, and groups that have any.
    """
    samples = rollout.samples
    metrics = {
        "samples/tokens": metric.Sum(jnp.sum(samples.mask, dtype=jnp.float32)),
        "samples/length_mean": jnp.mean(samples.length, dtype=jnp.float32),
        "samples/finished_share": jnp.mean(samples.finished, dtype=jnp.float32),
    }
    if is_measured(samples.decode_steps):
        # Each sample's first token comes from its prompt.
        used = jnp.sum(jnp.maximum(samples.length - 1, 0), dtype=jnp.float32)
        spent = jnp.sum(samples.decode_steps)
        metrics["samples/useful_share"] = used / jnp.maximum(spent, 1)
    if is_measured(rollout.verdict):
        metrics |= _verdict_metrics(rollout)
    return metrics


def _verdict_metrics(rollout: Rollout) -> dict[str, Any]:
    """Metrics of the verdict; rows whose verifier failed are only counted."""
    given, member = rollout.verdict, solve_rate.members(rollout)
    group = solve_rate.by_correct(rollout)
    judged = jnp.mean(~given.failed, dtype=jnp.float32)
    return {
        "reward/mean": numerics.masked_mean(given.reward[..., None], member),
        "reward/solved": numerics.masked_mean(group.p, group.n > 0),
        "reward/mixed_share": jnp.mean(group.mixed, dtype=jnp.float32),
        "verify/failed": metric.Sum(jnp.sum(given.failed, dtype=jnp.float32)),
        # Computed as 1 - share, so that it is exactly 1 if all have failed.
        "verify/failed_share": 1 - judged,
    }
