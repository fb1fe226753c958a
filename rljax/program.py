"""The two glues of a training step: fused into one program, or split at the verifier.

A step is act, verify, learn. `act` makes the rollout without its verdict: it samples,
or reads demonstrations, and measures the reference. Fused and split give the same
numbers. An experiment whose dataflow differs copies this file's few lines and edits
them.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check, keys, mesh, metric, numerics
from rljax.advantage import solve_rate
from rljax.learn import origin
from rljax.learn.update import Learner
from rljax.policy.base import Policy
from rljax.rollout.sample import Sampler
from rljax.types import (
    Measure,
    Prompts,
    Rollout,
    Samples,
    Source,
    TokenStats,
    TrainState,
    Verdict,
    is_measured,
)

Act = Callable[[TrainState, Prompts], Rollout]
Verify = Callable[[Prompts, Samples], Verdict]
Teacher = Callable[[TrainState, Prompts, Samples], TokenStats]
Run = Callable[[TrainState, Prompts], tuple[TrainState, dict[str, Any]]]


def actor(
    policy: Policy,
    sample: Sampler,
    *,
    measure_old: Measure | None = None,
    teacher: Teacher | None = None,
) -> Act:
    """Samples; and if the state holds reference parameters, measures them.

    Args:
      policy: what was sampled from, and measures the reference.
      sample: a sampler of it.
      measure_old: (params, prompts, samples) -> TokenStats, what `old` is instead of
        the sampler's own statistics: for values, or if the sampler differs by design.
      teacher: (state, prompts, samples) -> TokenStats, what `teacher` is.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.function("sample", sample, "params, prompts, key")
    if measure_old is not None:
        check.function("measure_old", measure_old, "params, prompts, samples")
    if teacher is not None:
        check.function("teacher", teacher, "state, prompts, samples")

    def act(state, prompts):
        key = keys.of_step(state.key, state.step)
        samples, old = sample(state.params, prompts, key)
        if measure_old is not None:
            old = measure_old(state.params, prompts, samples)
        rollout = Rollout(prompts=prompts, samples=samples, old=old)
        if is_measured(old):
            rollout = rollout.replace(origin=origin.of(state.params, old))
        if teacher is not None:
            rollout = rollout.replace(teacher=teacher(state, prompts, samples))
        if state.reference is not None:
            reference = policy.measure(state.reference, prompts, samples)
            rollout = rollout.replace(reference=reference)
        return rollout

    return act


def demonstrator() -> Act:
    """Reads `prompts.data`'s "completion" and "completion_mask" [P, T] as samples."""

    def act(state, prompts):
        del state
        tokens = prompts.data["completion"][:, None]
        done = jnp.ones(tokens.shape[:2], bool)
        samples = Samples(
            tokens=tokens,
            mask=prompts.data["completion_mask"][:, None],
            source=jnp.full(done.shape, Source.DEMONSTRATION, jnp.int32),
            finished=done,
        )
        return Rollout(prompts=prompts, samples=samples)

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
        rollout = act(state, mesh.constrain(prompts))
        if verify is not None:
            verdict = verdict_of(verify, rollout.prompts, rollout.samples)
            rollout = rollout.replace(verdict=verdict)
        state, metrics = learner.learn(state, mesh.constrain(rollout))
        return state, metrics | rollout_metrics(rollout)

    return jax.jit(lambda s, p: jax.lax.scan(step, s, p), donate_argnums=0)


def split(act: Act, learner: Learner, verify: Verify) -> Run:
    """The same steps around a Python verifier, `(prompts, samples)` of numpy arrays."""
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
        return state, metrics | rollout_metrics(rollout)

    finish = jax.jit(finish, donate_argnums=0)

    def run(state, prompts):
        rows = []
        for k in range(prompts.tokens.shape[0]):
            rollout = start(state, jax.tree.map(lambda x, k=k: x[k], prompts))
            host = jax.device_get((rollout.prompts, rollout.samples))
            verdict = verdict_of(verify, *host)
            state, metrics = finish(state, rollout.replace(verdict=verdict))
            rows.append(metrics)
        return state, jax.tree.map(lambda *x: jnp.stack(x), *rows)

    return run


def verdict_of(verify: Verify, prompts: Prompts, samples: Samples) -> Verdict:
    """The verifier's verdict, checked: when traced in a graph, at each call on a host.

    Rewards of another floating type become float32.

    Raises:
      ValueError: unless it is a `Verdict` of arrays [P, G].
    """
    verdict = verify(prompts, samples)
    shape, xp = samples.tokens.shape[:2], jnp
    if isinstance(samples.tokens, np.ndarray):
        xp = np
    if not isinstance(verdict, Verdict):
        _refuse(verify, "a Verdict", verdict, shape)
    arrays = {}
    for field, dtype in _VERDICT.items():
        value = getattr(verdict, field)
        try:
            array = xp.asarray(value)
        except (TypeError, ValueError):  # text, None, lists of different lengths
            _refuse(verify, field, value, shape)
        kind = jnp.floating if field == "reward" else jnp.bool_
        if array.shape != shape or not jnp.issubdtype(array.dtype, kind):
            _refuse(verify, field, value, shape)
        arrays[field] = array.astype(dtype)
    return Verdict(**arrays)


_VERDICT = {"reward": "float32", "correct": "bool", "failed": "bool"}


def _refuse(verify: Verify, what: str, got, shape: tuple[int, ...]) -> NoReturn:
    fn = verify.func if isinstance(verify, functools.partial) else verify
    name = getattr(fn, "__qualname__", type(fn).__qualname__)  # an object has none
    size = f"[P, G] = {list(shape)}"
    if what in _VERDICT:
        what += f" as {_VERDICT[what]} {size}"
    fields = ", ".join(f"{field}={dtype}" for field, dtype in _VERDICT.items())
    raise ValueError(
        f"the verifier {fn.__module__}.{name} must return {what}, got"
        f" {_described(got)}; return Verdict({fields}), each an array {size}, or"
        " Verdict.binary(correct)."
    )


def _described(value) -> str:
    """Type and shape of anything."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


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
    verdict, member = rollout.verdict, solve_rate.members(rollout)
    group = solve_rate.by_correct(rollout)
    judged = jnp.mean(~verdict.failed, dtype=jnp.float32)
    return {
        "reward/mean": numerics.masked_mean(verdict.reward[..., None], member),
        "reward/solved": numerics.masked_mean(group.p, group.n > 0),
        "reward/mixed_share": jnp.mean(group.mixed, dtype=jnp.float32),
        "verify/failed": metric.Sum(jnp.sum(verdict.failed, dtype=jnp.float32)),
        # Exactly 1 if all have failed, however a device divides.
        "verify/failed_share": 1 - judged,
    }
