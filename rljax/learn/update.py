"""One optimiser step: measure, weigh, coefficients at the token statistics, pull back.

The loss is differentiated at the token statistics, one number per token; the model only
pulls these coefficients back to its parameters, microbatch by microbatch. So every
method, however its weights compare tokens, adds up over microbatches exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rljax import check, keys, mesh, metric, numerics
from rljax.advantage import mass, solve_rate
from rljax.advantage.algebra import Algorithm, reads_current
from rljax.learn import master_weights, microbatch, origin
from rljax.learn.gate import Gate, Guarded, every
from rljax.types import (
    Measure,
    ReferencedMeasure,
    Rollout,
    TrainState,
    is_measured,
    over_tokens,
    take,
)


class Learner(NamedTuple):
    """init: (params, key, reference=None) -> TrainState.
    learn: (state, rollout) -> (state, metrics), all optimiser steps on one rollout."""

    init: Callable[..., TrainState]
    learn: Callable[[TrainState, Rollout], tuple[TrainState, dict]]


def learner(
    measure: Measure | ReferencedMeasure,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    *,
    gate: Gate | None = None,
    num_passes: int = 1,
    num_minibatches: int = 1,
    num_microbatches: int = 1,
    num_lengths: int = 1,
) -> Learner:
    """Makes the learning half of a training step.

    A step is refused, and leaves no trace, if its gradient is not finite or if it would
    make something that is not out of the parameters, of the optimiser's or of the
    algorithm's state. Values that are only reported decide nothing. Parameters narrower
    than float32 are moved in float32; see `master_weights`.

    Args:
      measure: (params, prompts, samples) -> TokenStats, a policy's `measure`, or a
        `ReferencedMeasure`.
      algorithm: what to minimise.
      optimizer: any optax transformation.
      gate: decides over gradients that are finite; None accepts them all.
      num_passes: passes over each rollout batch.
      num_minibatches: optimiser steps per pass; prompts are shuffled among them.
      num_microbatches: pieces of a minibatch whose activations exist at once.
      num_lengths: further pieces of each, by length, so that short completions are not
        computed up to T; see `microbatch`. Compile time grows with it.
    """
    if not isinstance(measure, ReferencedMeasure):
        check.function("measure", measure, "params, prompts, samples")
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
    gate = every() if gate is None else gate
    optimizer = master_weights.master_weights(optimizer)
    num_steps = num_passes * num_minibatches

    def init(params, key, reference=None):
        return TrainState(
            params=params,
            optimizer=optimizer.init(params),
            algorithm=algorithm.init(),
            gate=numerics.strong(Guarded(gate.init(), jnp.zeros((), jnp.int32))),
            key=key,
            step=jnp.zeros((), jnp.int32),
            reference=reference,
        )

    def minibatch(state, rows, i):
        if num_minibatches == 1:
            return rows
        of_step = keys.of_step(state.key, state.step)
        key = keys.stream(of_step, keys.Stream.SHUFFLE, i // num_minibatches)
        order = jax.random.permutation(key, rows[0].samples.tokens.shape[0])
        order = order.reshape(-1, num_minibatches)[:, i % num_minibatches]
        return mesh.constrain(take(rows, order))

    def learn(state, rollout):
        _require_divisible(rollout, num_minibatches * num_microbatches, num_lengths)
        before = state.algorithm
        credits, after, credit_metrics = algorithm.credit(rollout, before)
        usable = numerics.stays_finite(before, after)
        state = state.replace(algorithm=after)

        def one(state, i):
            batch, own = minibatch(state, (rollout, credits), i)
            grads, _, weighing, metrics = gradient(
                measure,
                algorithm,
                num_microbatches,
                state,
                batch,
                own,
                i == 0,
                num_lengths,
            )
            step = _Step(grads, weighing, metrics, usable, i // num_minibatches)
            return _take(step, state, gate, optimizer)

        state, metrics = _repeat(one, state, num_steps)
        # If every step of this batch was refused, the algorithm's state is restored, as
        # well: one NaN in a running average would stay for the whole run.
        taught = metrics["update/refused"] < 1
        kept = _choose(taught, state.algorithm, before)
        state = state.replace(algorithm=kept, step=state.step + 1)
        return state, metrics | credit_metrics

    return Learner(init, learn)


class _Step(NamedTuple):
    """An optimiser step that may be taken or refused.

    grads: the gradient. weighing: the algorithm's state after it. metrics: so far.
    usable: bool[] what the credit remembered of this rollout batch is finite.
    reuse: i32[] earlier passes over this rollout batch.
    """

    grads: Any
    weighing: Any
    metrics: dict
    usable: jax.Array
    reuse: jax.Array


def _take(step: _Step, state: TrainState, gate: Gate, optimizer):
    """(state, stop, metrics) after the step, or as it was if the step is refused."""
    metrics = step.metrics | {"update/gradient_norm": optax.tree.norm(step.grads)}
    accept, stop, gate_state, gate_metrics = gate.update(
        step.grads, metric.numbers(metrics), step.reuse, state.gate.gate
    )
    updates, moments = optimizer.update(step.grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new = (params, moments, step.weighing)
    old = (state.params, state.optimizer, state.algorithm)
    finite = numerics.all_finite(step.grads) & numerics.stays_finite(old, new)
    finite &= step.usable
    accept &= finite
    moved = _moved_share(old[:2], new[:2])
    params, moments, weighing = _choose(accept, new, old)
    in_row = jnp.where(finite, 0, state.gate.refused_in_row + 1)
    guarded = Guarded(_choose(finite, gate_state, state.gate.gate), in_row)
    state = state.replace(
        params=params, optimizer=moments, algorithm=weighing, gate=guarded
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
    """f32[]: share of the parameters that differ, as the optimiser knows them."""
    old, new = (jax.tree.leaves(master_weights.exact(*pair)) for pair in (old, new))
    moved = [jnp.sum(a != b, dtype=jnp.float32) for a, b in zip(old, new, strict=True)]
    return jnp.sum(jnp.stack(moved)) / sum(x.size for x in new)


def gradient(
    measure, algorithm, num_micro, state, batch, credits, first, num_lengths=1
):
    """The gradient of one optimiser step.

    With one microbatch a single forward serves weighing and pulling back. With several,
    an extra forward is needed only if the weighting reads `current`, and not at the
    first optimiser step (`first`, bool[]) on samples of these very parameters, where
    `current` is `old`.

    Returns:
      (gradient in at least float32, coefficient -dL/dlogp f32[P, G, T], algorithm
      state, metrics).
    """

    def forward(params, rows):
        if isinstance(measure, ReferencedMeasure):
            return measure.fn(params, state.reference, rows.prompts, rows.samples)
        return measure(params, rows.prompts, rows.samples)

    def coefficients(now, rows, credits):
        loss, pull = jax.value_and_grad(algorithm.loss)(now, credits, rows)
        mask = rows.samples.mask

        def inside(x):  # what lies outside the mask may be NaN and pushes nothing
            return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 3)), x, 0.0)

        return loss, over_tokens(inside, pull)

    def add(total, rows, credits):
        now, pull_back = jax.vjp(lambda p: forward(p, rows), state.params)
        loss, pull = coefficients(now, rows, credits)
        (grads,) = pull_back(pull)
        return jax.tree.map(jnp.add, total, grads), loss, (-pull.logp, now)

    pieces = {"num": num_micro, "num_lengths": num_lengths}
    known = jax.lax.cond(
        first, lambda: origin.fits(batch, state.params), lambda: jnp.zeros((), bool)
    )
    batch = batch.without("origin", "current")
    if num_micro == num_lengths == 1:
        now, pull_back = jax.vjp(lambda p: forward(p, batch), state.params)
        current = batch.replace(current=jax.lax.stop_gradient(now))
        credits, new, metrics = algorithm.weigh(credits, current, state.algorithm)
        loss, pull = coefficients(now, batch, credits)
        (grads,) = pull_back(pull)
        grads = jax.tree.map(_widen, grads)
        coefficient = -pull.logp
    else:
        current = batch
        if reads_current(algorithm, credits, batch, state.algorithm):
            now = _current(forward, state.params, batch, known, **pieces)
            current = batch.replace(current=now)
        credits, new, metrics = algorithm.weigh(credits, current, state.algorithm)
        zeros = jax.tree.map(lambda p: _widen(jnp.zeros_like(p)), state.params)
        grads, loss, (coefficient, now) = microbatch.over_pieces(
            add, zeros, batch, credits, **pieces
        )
    metrics |= {"update/loss": loss} | _now_metrics(now, batch, first)
    metrics |= _mass_metrics(coefficient, credits, batch)
    return grads, coefficient, new, metrics


def _widen(x):  # a sum of many small pieces would be lost in fewer bits
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _current(forward, params, batch, known, **pieces):
    """The current policy's statistics: `old` where that is `known`, else measured."""

    def measured():
        def measure(_, rows, credits):
            return (), (), forward(params, rows)

        return microbatch.over_pieces(measure, (), batch, (), **pieces)[2]

    asked = jax.tree.structure(jax.eval_shape(measured))
    if not is_measured(batch.old) or jax.tree.structure(batch.old) != asked:
        return measured()  # the method may ask for more than the sampler returned
    return jax.lax.cond(known, lambda: batch.old, measured)


def _repeat(one, state, num_steps):
    """Runs optimiser steps until done or stopped; each metric says how it adds up."""

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


def _now_metrics(now, batch, first):
    mask = batch.samples.mask
    metrics = {}
    if is_measured(now.entropy):
        metrics["policy/entropy_nats"] = numerics.masked_mean(now.entropy, mask)
    if not is_measured(batch.old):
        return metrics
    log_ratio = jnp.where(mask, now.logp - batch.old.logp, 0.0)
    gap = jnp.abs(log_ratio)
    # Before the first optimiser step both are one policy: what differs is rounding.
    return metrics | {
        "gap/sampler_learner_max": metric.Max(jnp.where(first, jnp.max(gap), 0.0)),
        "gap/sampler_learner_mean": metric.Max(
            jnp.where(first, numerics.masked_mean(gap, mask), 0.0)
        ),
        "policy/kl_old_nats": numerics.masked_mean(_k3(log_ratio), mask),
    }


def _k3(log_ratio):
    reach = numerics.bounded(log_ratio)  # one far token hides no other
    return jnp.expm1(reach) - reach


def _mass_metrics(coefficient, credits, rollout):
    if not is_measured(rollout.verdict):
        return {}  # supervised: all mass is positive, and nothing is difficult
    p = solve_rate.by_correct(rollout).p[:, 0, 0]
    pushed = jnp.zeros(coefficient.shape, bool)
    for c in credits:
        pushed |= (c.weight > 0) & (c.advantage != 0)
    metrics = mass.of_coefficients(coefficient, p)
    metrics["clipped_share"] = numerics.masked_mean(1.0 * (coefficient == 0), pushed)
    return {f"mass/{k}": v for k, v in metrics.items()}


def _require_divisible(rollout, pieces, num_lengths):
    P, G, _ = rollout.samples.tokens.shape
    if P % pieces:
        raise ValueError(
            f"the number of prompts must be a multiple of num_minibatches *"
            f" num_microbatches = {pieces}, got {P} prompts per rollout;"
            " change one of them."
        )
    if G % num_lengths:
        raise ValueError(
            f"the number of samples per prompt must be a multiple of num_lengths ="
            f" {num_lengths}, got {G}; change one of them."
        )
