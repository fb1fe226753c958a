"""The two glues of a training step: fused into one program, or split at the verifier.

A step is act, verify, learn. `act` makes the rollout without its verdict: it samples,
or reads demonstrations, and measures the reference. Fused and split give the same
numbers. An experiment whose dataflow differs copies this file's few lines and edits
them.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check, mesh
from rljax.policy.base import Policy
from rljax.sample import Sampler
from rljax.types import (
    Prompts,
    Rollout,
    Samples,
    Source,
    TokenStats,
    TrainState,
    Verdict,
)
from rljax.update import Learner, Measure

Act = Callable[[TrainState, Prompts], Rollout]
Verify = Callable[[Prompts, Samples], Verdict]
Teacher = Callable[[TrainState, Prompts, Samples], TokenStats]
Run = Callable[[TrainState, Prompts], tuple[TrainState, dict[str, jax.Array]]]


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
        key = jax.random.fold_in(state.key, state.step)
        samples, old = sample(state.params, prompts, key)
        if measure_old is not None:
            old = measure_old(state.params, prompts, samples)
        rollout = Rollout(prompts=prompts, samples=samples, old=old)
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
            rollout = rollout.replace(verdict=verify(rollout.prompts, rollout.samples))
        state, metrics = learner.learn(state, mesh.constrain(rollout))
        return state, metrics | rollout_metrics(rollout)

    return jax.jit(lambda s, p: jax.lax.scan(step, s, p), donate_argnums=0)


def split(act: Act, learner: Learner, verify: Verify) -> Run:
    """The same steps around a Python verifier, `(prompts, samples)` of numpy arrays."""
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
            verdict = jax.tree.map(np.asarray, verify(*host))
            state, metrics = finish(state, rollout.replace(verdict=verdict))
            rows.append(metrics)
        return state, jax.tree.map(lambda *x: jnp.stack(x), *rows)

    return run


def rollout_metrics(rollout: Rollout) -> dict[str, jax.Array]:
    """What every run reports of its rollouts; lengths in tokens, shares in [0, 1]."""
    samples = rollout.samples
    metrics = {
        "samples/tokens": jnp.sum(samples.mask, dtype=jnp.float32),
        "samples/length_mean": jnp.mean(samples.length, dtype=jnp.float32),
        "samples/finished_share": jnp.mean(samples.finished, dtype=jnp.float32),
    }
    if isinstance(samples.decoded, jax.Array):
        # Each sample's first token comes with its prompt.
        used = jnp.sum(jnp.maximum(samples.length - 1, 0), dtype=jnp.float32)
        spent = jnp.sum(samples.decoded)
        metrics["samples/useful_share"] = used / jnp.maximum(spent, 1)
    if isinstance(rollout.verdict, Verdict):
        verdict = rollout.verdict
        solved = jnp.mean(verdict.correct, 1, dtype=jnp.float32)
        metrics |= {
            "reward/mean": jnp.mean(verdict.reward),
            "reward/solved": jnp.mean(solved),
            "reward/mixed_share": jnp.mean(
                (solved > 0) & (solved < 1), dtype=jnp.float32
            ),
            "verify/failed": jnp.sum(verdict.failed, dtype=jnp.float32),
        }
    return metrics
