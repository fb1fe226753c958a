"""A training step: act, verify, learn; in one program, or split at the verifier.

`act` makes the rollout without its verdict: it samples, or reads stored answers, and
measures the reference. `fused` and `split` give the same numbers. An experiment whose
dataflow differs copies these few lines and edits them.
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
Teacher = Callable[[TrainState, Prompts, Samples], TokenStats]
Run = Callable[[TrainState, Prompts], tuple[TrainState, dict[str, Any]]]


def actor(
    policy: Policy,
    sample: Sampler,
    *,
    measure_old: Measure | None = None,
    teacher: Teacher | None = None,
) -> Act:
    """Samples, and measures what the methods read of other policies.

    The reference is measured if the state holds its parameters. With the sampler
    `mixed.stored_answers()` the rollouts are demonstrations.

    Args:
      policy: what is sampled from; it measures the reference.
      sample: (params, prompts, key) -> (samples, old), a sampler of it.
      measure_old: (params, prompts, samples) -> TokenStats, replaces the sampler's
        statistics as `rollout.old`. Needed when a method reads values, or when the
        sampler differs from the policy by design.
      teacher: (state, prompts, samples) -> TokenStats, becomes `rollout.teacher`.
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
        # The sampler's layout ends here, so that the update's does not reach into it.
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
    """K training steps in one XLA program: `lax.scan(step, state, prompts_K)`.

    The state is donated: do not touch it after the call. Without a verifier
    (supervised terms) rollouts carry no verdict.
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
    """The same steps around a Python verifier of (prompts, samples), NumPy arrays.

    Of several processes each verifies its share of the prompts: see `verdict`.
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
    num_rows: completions that are decoded at a time; fewer than P * G with slots.
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
    def num_pieces(self) -> int:
        """Pieces of a rollout batch, one of which is in memory at once."""
        return self.num_minibatches * self.num_microbatches * self.num_group_parts

    @property
    def num_rounds(self) -> float:
        """Completions per row that is decoded."""
        return self.num_prompts * self.num_samples / self.num_rows


class Program(NamedTuple):
    """What is going to run: the parts of a training step, and what it starts from.

    verify: a verifier in the graph; with `glue=split` any function of NumPy arrays.
    state, prompts [K, P, ...]: pytrees of jax.ShapeDtypeStruct.
    decoder: configuration of the policy.
    glue: `fused` or `split`, (act, learner, verify) -> run.
    others: what else the run compiles, such as its evaluations: a function by name, and
      the shapes of its arguments, parameters and a batch.
    place, layout: the mesh that all of it is spread over; None is the default device.
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
        return 1 if self.place is None else self.place.size

    def run(self) -> Run:
        """The loop; each call makes a new one, which compiles anew."""
        return self.glue(self.act, self.learner, self.verify)

    def fused(self) -> jax.stages.Wrapped:
        """The loop as one program; a verifier in Python is replaced by an empty one."""
        return cast(jax.stages.Wrapped, fused(self.act, self.learner, self.in_graph()))

    def in_graph(self) -> Verify | None:
        """The verifier, or what stands for one that cannot be traced."""
        return _silent if self.glue is split else self.verify

    def lower(self, name: str | None = None) -> jax.stages.Lowered:
        """Lowered for the mesh, or for the default device.

        Args:
          name: of one of the others; None is the step.
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
        """As `lower`, compiled: to read off what it takes, not to run it."""
        lowered, options = self.lower(name), dict[str, bool | str]()
        # On a CPU, LLVM takes most of the time, and changes nothing of what is read.
        if jax.default_backend() == "cpu":
            options["xla_backend_optimization_level"] = "0"
        return lowered.compile(options)

    def batch(self) -> Prompts:
        """The shapes of the prompts of one training step, [P, ...]."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.prompts
        )

    def sizes(self) -> Sizes:
        """The sizes, read from what the parts do when they are traced."""
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


def _silent(prompts: Prompts, samples: Samples) -> Verdict:
    del prompts
    return Verdict.binary(jnp.zeros(samples.tokens.shape[:2], bool))


def _rows_decoded(jaxpr: core.Jaxpr, looped: bool = False) -> int:
    """The rows of the products with weights inside of `while` loops; 0 without any."""
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
    """What every run reports of its rollouts; lengths in tokens, shares in [0, 1].

    Rewards and solve rates are of verified samples, over groups that have any.
    """
    samples = rollout.samples
    metrics = {
        "samples/tokens": metric.Sum(jnp.sum(samples.mask, dtype=jnp.float32)),
        "samples/length_mean": jnp.mean(samples.length, dtype=jnp.float32),
        "samples/finished_share": jnp.mean(samples.finished, dtype=jnp.float32),
    }
    if is_measured(samples.decode_steps):
        # Each sample's first token comes with its prompt.
        used = jnp.sum(jnp.maximum(samples.length - 1, 0), dtype=jnp.float32)
        spent = jnp.sum(samples.decode_steps)
        metrics["samples/useful_share"] = used / jnp.maximum(spent, 1)
    if is_measured(rollout.verdict):
        metrics |= _verdict_metrics(rollout)
    return metrics


def _verdict_metrics(rollout: Rollout) -> dict[str, Any]:
    """Rows whose verifier failed are counted, and take no part in anything else."""
    given, member = rollout.verdict, solve_rate.members(rollout)
    group = solve_rate.by_correct(rollout)
    judged = jnp.mean(~given.failed, dtype=jnp.float32)
    return {
        "reward/mean": numerics.masked_mean(given.reward[..., None], member),
        "reward/solved": numerics.masked_mean(group.p, group.n > 0),
        "reward/mixed_share": jnp.mean(group.mixed, dtype=jnp.float32),
        "verify/failed": metric.Sum(jnp.sum(given.failed, dtype=jnp.float32)),
        # Exactly 1 if all have failed, however a device divides.
        "verify/failed_share": 1 - judged,
    }
