"""The learner: optimiser steps on a rollout, each of them applied or refused.

`gradient` computes a step's gradient; here the gate and the optimiser get it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import check, keys, mesh, metric, numerics
from rljax.advantage import mass, solve_rate
from rljax.advantage.algebra import Algorithm
from rljax.layout import take
from rljax.learn import gradient, master_weights
from rljax.learn.gate import Gate, Guarded, all_of, decided
from rljax.learn.gradient import Gradient
from rljax.learn.microbatch import Pieces
from rljax.types import Credit, Measure, Rollout, TrainState, is_measured

# `gap/sampler_learner_far_share` counts tokens whose log-probabilities by sampler and
# learner differ by more than this, nats: about a tenth of the probability.
_FAR = 0.1


class Repeats(NamedTuple):
    """How often a learner goes over a rollout, and in how many pieces.

    num_group_parts: parts of each group, including those by length.
    """

    num_passes: int = 1
    num_minibatches: int = 1
    num_microbatches: int = 1
    num_group_parts: int = 1


class Learner(NamedTuple):
    """The learning half of a training step.

    init: (params, key, reference=None, frozen=None) -> TrainState.
    learn: (state, rollout) -> (state, metrics), all optimiser steps on one rollout.
    repeats: numbers of passes and pieces, for `rljax.plan`.
    """

    init: Callable[..., TrainState]
    learn: Callable[[TrainState, Rollout], tuple[TrainState, dict]]
    repeats: Repeats = Repeats()


def learner(
    measure: Measure,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    *,
    gate: Gate | None = None,
    num_passes: int = 1,
    num_minibatches: int = 1,
    num_microbatches: int = 1,
    num_lengths: int = 1,
    num_group_parts: int = 1,
) -> Learner:
    """Makes the learning half of a training step.

    An optimiser step is refused if its gradient is not finite, or if it would make the
    parameters, the optimiser's or the algorithm's state infinite or NaN. A refused step
    changes none of them. Metrics play no part in this. Parameters narrower than float32
    are moved in float32; see `master_weights`.

    Args:
      measure: (params, prompts, samples, reference) -> TokenStats, a policy's
        `measure`. `reference` is `TrainState.reference`.
      algorithm: what to minimise.
      optimizer: any optax transformation. A decoder stacks the parameters of its layers
        along axis 0, so a learning rate per layer is a scale along this axis.
      gate: accepts or refuses finite gradients; None accepts all.
      num_passes: passes over each rollout batch.
      num_minibatches: optimiser steps per pass; prompts are shuffled among them.
      num_microbatches: pieces of a minibatch along the prompts; only one piece's
        activations exist at a time.
      num_lengths: further pieces, by length, so that short completions are not padded
        to T; see `microbatch`. Compile time grows with this number.
      num_group_parts: further pieces, along the samples of a group; see `microbatch`.

    Returns:
      A learner.

    Raises:
      ValueError: if an argument is out of range; when traced, if the rollout's prompts
        and samples do not divide into these pieces.
    """
    check.function("measure", measure, "params, prompts, samples, reference")
    check.kind("algorithm", algorithm, Algorithm, "algorithms.grpo()")
    check.kind(
        "optimizer", optimizer, optax.GradientTransformation, "optax.adamw(1e-5)"
    )
    if gate is not None:
        check.kind("gate", gate, Gate, "target_kl(0.05)")
    check.count("num_passes", num_passes)
    check.count("num_minibatches", num_minibatches)
    check.count("num_microbatches", num_microbatches)
    check.count("num_lengths", num_lengths)
    check.count("num_group_parts", num_group_parts)
    pieces = Pieces(num_microbatches, num_lengths, num_group_parts)
    parts = _Parts(
        measure=measure,
        algorithm=algorithm,
        optimizer=master_weights.master_weights(optimizer),
        gate=all_of() if gate is None else gate,
        repeats=Repeats(num_passes, num_minibatches, num_microbatches, pieces.of_group),
        pieces=pieces,
    )
    init = functools.partial(_init, parts)
    return Learner(init, functools.partial(_learn, parts), parts.repeats)


class _Parts(NamedTuple):
    """What a learner is made of."""

    measure: Measure
    algorithm: Algorithm
    optimizer: optax.GradientTransformation
    gate: Gate
    repeats: Repeats
    pieces: Pieces


def _init(parts: _Parts, params, key, reference=None, frozen=None) -> TrainState:
    guarded = Guarded(parts.gate.init(), jnp.zeros((), jnp.int32))
    return TrainState(
        params=params,
        optimizer=parts.optimizer.init(params),
        algorithm=parts.algorithm.init(),
        gate=numerics.strongly_typed(guarded),
        key=key,
        step=jnp.zeros((), jnp.int32),
        reference=reference,
        frozen=frozen,
    )


def _learn(parts: _Parts, state: TrainState, rollout: Rollout):
    """(state, metrics) after all optimiser steps on one rollout."""
    num_passes, num_minibatches = parts.repeats[:2]
    _require_divisible(rollout, num_minibatches, parts.pieces)
    before = state.algorithm
    with jax.named_scope("credit"):
        credits, after, credit_metrics = parts.algorithm.credit(rollout, before)
    usable = numerics.stays_finite(before, after)
    state = state.replace(algorithm=after)

    def minibatch_step(state, i):
        own, batch = _minibatch(credits, rollout, state, i, num_minibatches)
        first = i == 0
        found = gradient.of_minibatch(
            parts.measure, parts.algorithm, parts.pieces, own, batch, state, first
        )
        metrics = _gradient_metrics(found, batch, first)
        step = _Step(found, metrics, usable, i // num_minibatches)
        return _take(step, state, parts.gate, parts.optimizer)

    with jax.named_scope("update"):
        state, metrics = _repeat(minibatch_step, state, num_passes * num_minibatches)
    # If every step of this batch was refused, restore the algorithm's state as well:
    # one NaN in a running average would stay for the whole run.
    any_accepted = metrics["update/refused"] < 1
    kept = _choose(any_accepted, state.algorithm, before)
    state = state.replace(algorithm=kept, step=state.step + 1)
    return state, metrics | credit_metrics


def _minibatch(
    credits: tuple[Credit, ...], rollout: Rollout, state: TrainState, i, num: int
) -> tuple[tuple[Credit, ...], Rollout]:
    """Credits and prompts of optimiser step i; each pass shuffles into `num` steps."""
    if num == 1:
        return credits, rollout
    key = keys.of_step(state.key, state.step)
    key = keys.stream(key, keys.Stream.SHUFFLE, i // num)
    order = jax.random.permutation(key, rollout.samples.tokens.shape[0])
    order = order.reshape(-1, num)[:, i % num]
    return mesh.constrain(take((credits, rollout), order))


class _Step(NamedTuple):
    """An optimiser step that may be applied or refused.

    gradient: the gradient, with the algorithm's state after the step.
    metrics: the step's metrics so far.
    usable: bool[] the algorithm's state after the advantage chains is finite.
    reuse: i32[] number of earlier passes over this rollout batch.
    """

    gradient: Gradient
    metrics: dict
    usable: jax.Array
    reuse: jax.Array


def _take(step: _Step, state: TrainState, gate: Gate, optimizer):
    """(state, stop, metrics); the state changes only if the step is accepted."""
    grads = step.gradient.grads
    metrics = step.metrics | {"update/gradient_norm": optax.tree.norm(grads)}
    accept, stop, gate_state, gate_metrics = decided(
        gate, grads, metric.numbers(metrics), step.reuse, state.gate.gate
    )
    updates, moments = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new = (params, moments, step.gradient.algorithm_state)
    old = (state.params, state.optimizer, state.algorithm)
    finite = numerics.all_finite(grads) & numerics.stays_finite(old, new)
    finite &= step.usable
    accept &= finite
    moved = _moved_share(old[:2], new[:2])
    params, moments, algorithm_state = _choose(accept, new, old)
    in_row = jnp.where(finite, 0, state.gate.refused_in_row + 1)
    guarded = Guarded(_choose(finite, gate_state, state.gate.gate), in_row)
    state = state.replace(
        params=params, optimizer=moments, algorithm=algorithm_state, gate=guarded
    )
    metrics |= gate_metrics | {
        "update/moved_share": jnp.where(accept, moved, 0.0),
        "update/refused": ~accept,
        "update/refused_in_row": metric.Max(in_row),
    }
    return state, stop & finite, metrics


def _choose(condition, new, old):
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)


def _moved_share(old, new) -> jax.Array:
    """f32[]: share of the parameters that differ, counted on the float32 copies."""
    old, new = (jax.tree.leaves(master_weights.exact(*pair)) for pair in (old, new))
    moved = [jnp.sum(a != b, dtype=jnp.float32) for a, b in zip(old, new, strict=True)]
    # As a float, because 8B parameters overflow 32-bit integers.
    return jnp.sum(jnp.stack(moved)) / float(sum(x.size for x in new))


def _repeat(one, state, num_steps):
    """Runs optimiser steps until done or stopped, and adds up their metrics."""

    def step(state, i):
        state, stop, metrics = one(state, i)
        return state, stop, metric.addable(metrics)

    begin = jnp.zeros((), jnp.int32)
    if num_steps == 1:
        state, _, total = step(state, begin)
        steps = jnp.ones((), jnp.float32)
    else:

        def body(carry):
            state, i, _, total = carry
            state, stop, metrics = step(state, i)
            total = {name: value.plus(metrics[name]) for name, value in total.items()}
            return state, i + 1, stop, total

        total = metric.nothing(jax.eval_shape(lambda: step(state, begin)[2]))
        start = (state, begin, jnp.zeros((), bool), total)
        state, steps, _, total = jax.lax.while_loop(
            lambda c: (c[1] < num_steps) & ~c[2], body, start
        )
        steps = steps.astype(jnp.float32)
    metrics = {name: value.over(steps) for name, value in total.items()}
    return state, metrics | {"update/steps": steps}


def _gradient_metrics(found: Gradient, batch: Rollout, first) -> dict:
    metrics = found.metrics | {"update/loss": found.loss}
    metrics |= _now_metrics(found.now, batch, first)
    return metrics | _mass_metrics(found.coefficient, found.credits, batch)


def _now_metrics(now, batch, first):
    mask = batch.samples.mask
    metrics = {}
    if is_measured(now.entropy):
        metrics["policy/entropy_nats"] = numerics.masked_mean(now.entropy, mask)
    if "router_mismatch" in now.extra:  # see rljax.model.replay
        mismatch = numerics.masked_mean(now.extra["router_mismatch"], mask)
        metrics["gap/router_mismatch"] = mismatch
    if not is_measured(batch.old):
        return metrics
    log_ratio = jnp.where(mask, now.logp - batch.old.logp, 0.0)
    gap = jnp.abs(log_ratio)
    far = (gap > _FAR).astype(jnp.float32)
    found = {
        "max": jnp.max(gap),
        "mean": numerics.masked_mean(gap, mask),
        "far_share": numerics.masked_mean(far, mask),
    }
    # Before the first optimiser step both are the same policy; a gap is a mismatch of
    # the two implementations.
    gaps = {
        f"gap/sampler_learner_{name}": metric.Max(jnp.where(first, value, 0.0))
        for name, value in found.items()
    }
    kl = numerics.masked_mean(_k3(log_ratio), mask)
    return metrics | gaps | {"policy/kl_old_nats": kl}


def _k3(log_ratio):
    bounded = numerics.bounded(log_ratio)  # one outlier must not dominate the mean
    return jnp.expm1(bounded) - bounded


def _mass_metrics(coefficient, credits, rollout):
    if not is_measured(rollout.verdict):
        return {}  # supervised terms have no negative mass and no solve rate
    p = solve_rate.by_correct(rollout).p[:, 0, 0]
    pushed = jnp.zeros(coefficient.shape, bool)
    for c in credits:
        pushed |= c.weighs & (c.advantage != 0)
    metrics = mass.of_coefficients(coefficient, p)
    clipped = (coefficient == 0).astype(jnp.float32)
    metrics["clipped_share"] = numerics.masked_mean(clipped, pushed)
    return {f"mass/{k}": v for k, v in metrics.items()}


def _require_divisible(rollout: Rollout, num_minibatches: int, pieces: Pieces) -> None:
    P, G, _ = rollout.samples.tokens.shape
    parts = num_minibatches * pieces.num
    if P % parts:
        raise ValueError(
            f"the number of prompts must be a multiple of num_minibatches *"
            f" num_microbatches = {parts}, got {P} prompts per rollout;"
            " change one of them."
        )
    if G % pieces.of_group:
        named = "num_lengths" if pieces.groups == 1 else "num_lengths * num_group_parts"
        raise ValueError(
            f"the number of samples per prompt must be a multiple of {named} ="
            f" {pieces.of_group}, got {G}; change one of them."
        )
