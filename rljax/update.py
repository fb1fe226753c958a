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

from rljax import check, mesh, microbatch, numerics
from rljax.advantage import mass
from rljax.advantage.algebra import Algorithm, reads_current
from rljax.gate import Gate, finite
from rljax.types import NotMeasured, Rollout, TokenStats, TrainState

Measure = Callable[[Any, Any, Any], TokenStats]


class ReferencedMeasure(NamedTuple):
    """A measure function that compares with the reference policy.

    fn: (params, reference params, prompts, samples) -> TokenStats; the second argument
      is `TrainState.reference`.
    """

    fn: Callable[[Any, Any, Any, Any], TokenStats]


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

    Args:
      measure: (params, prompts, samples) -> TokenStats, a policy's `measure`, or a
        `ReferencedMeasure`.
      algorithm: what to minimise.
      optimizer: any optax transformation.
      gate: None is `finite()`.
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
        check.kind("gate", gate, Gate, "finite()")
    check.count("num_passes", num_passes)
    check.count("num_minibatches", num_minibatches)
    check.count("num_microbatches", num_microbatches)
    check.count("num_lengths", num_lengths)
    gate = finite() if gate is None else gate
    num_steps = num_passes * num_minibatches

    def init(params, key, reference=None):
        return TrainState(
            params=params,
            optimizer=optimizer.init(params),
            algorithm=algorithm.init(),
            gate=numerics.strong(gate.init()),
            key=key,
            step=jnp.zeros((), jnp.int32),
            reference=reference,
        )

    def learn(state, rollout):
        _require_divisible(rollout, num_minibatches * num_microbatches, num_lengths)
        before = state.algorithm
        credits, after, credit_metrics = algorithm.credit(rollout, before)
        state = state.replace(algorithm=after)
        # A key of its own: the sampler folds the same step into the same run key.
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 1)

        def one(state, i):
            rows = (rollout, credits)
            if num_minibatches > 1:
                order = jax.random.permutation(
                    jax.random.fold_in(key, i // num_minibatches),
                    rollout.samples.tokens.shape[0],
                ).reshape(-1, num_minibatches)[:, i % num_minibatches]
                rows = mesh.constrain(jax.tree.map(lambda x: x[order], rows))
            return optimiser_step(state, rows[0], rows[1], i)

        def optimiser_step(state, rollout, credits, i):
            grads, _, weighing, metrics = gradient(
                measure,
                algorithm,
                num_microbatches,
                state,
                rollout,
                credits,
                i == 0,
                num_lengths,
            )
            metrics["update/gradient_norm"] = optax.tree.norm(grads)
            accept, stop, gate_state, gate_metrics = gate.update(
                grads, metrics, i // num_minibatches, state.gate
            )
            updates, optimizer_state = optimizer.update(
                grads, state.optimizer, state.params
            )
            params, optimizer_state, weighing = jax.tree.map(
                lambda new, old: jnp.where(accept, new, old),
                (optax.apply_updates(state.params, updates), optimizer_state, weighing),
                (state.params, state.optimizer, state.algorithm),
            )
            state = state.replace(
                params=params,
                optimizer=optimizer_state,
                algorithm=weighing,
                gate=gate_state,
            )
            metrics |= gate_metrics | {"update/refused": ~accept}
            return state, stop, metrics

        state, metrics = _repeat(one, state, num_steps)
        # Of a batch that taught nothing no statistics stay: an average that took in one
        # NaN would be NaN for the rest of the run.
        taught = metrics["update/refused"] < 1
        kept = jax.tree.map(
            lambda new, old: jnp.where(taught, new, old), state.algorithm, before
        )
        state = state.replace(algorithm=kept, step=state.step + 1)
        return state, metrics | credit_metrics

    return Learner(init, learn)


def gradient(
    measure, algorithm, num_micro, state, batch, credits, first, num_lengths=1
):
    """The gradient of one optimiser step.

    With one microbatch a single forward serves weighing and pulling back. With several,
    an extra forward is needed only if the weighting reads `current`, and not at the
    first optimiser step after sampling (`first`, bool[]), where `current` is `old`.

    Returns:
      (gradient, coefficient -dL/dlogp f32[P, G, T], algorithm state, metrics).
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

        return loss, jax.tree.map(inside, pull)

    pieces = {"num": num_micro, "num_lengths": num_lengths}
    if num_micro == num_lengths == 1:
        now, pull_back = jax.vjp(lambda p: forward(p, batch), state.params)
        batch = batch.replace(current=jax.lax.stop_gradient(now))
        credits, new, metrics = algorithm.weigh(credits, batch, state.algorithm)
        loss, pull = coefficients(now, batch, credits)
        (grads,) = pull_back(pull)
        metrics |= {"update/loss": loss} | _now_metrics(now, batch, first)
        metrics |= _mass_metrics(-pull.logp, credits, batch)
        return grads, -pull.logp, new, metrics

    if reads_current(algorithm, credits, batch, state.algorithm):
        current = _current(forward, state.params, batch, first, **pieces)
        batch = batch.replace(current=current)
    credits, new, metrics = algorithm.weigh(credits, batch, state.algorithm)

    def add(total, rows, credits):
        now, pull_back = jax.vjp(lambda p: forward(p, rows), state.params)
        loss, pull = coefficients(now, rows, credits)
        (grads,) = pull_back(pull)
        return jax.tree.map(jnp.add, total, grads), loss, (-pull.logp, now)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    grads, loss, (coefficient, now) = microbatch.over_pieces(
        add, zeros, batch, credits, **pieces
    )
    metrics |= {"update/loss": loss} | _now_metrics(now, batch, first)
    metrics |= _mass_metrics(coefficient, credits, batch)
    return grads, coefficient, new, metrics


def _current(forward, params, batch, first, **pieces):
    def measured():
        def measure(_, rows, credits):
            return (), (), forward(params, rows)

        return microbatch.over_pieces(measure, (), batch, (), **pieces)[2]

    try:
        old = batch.old.replace()
    except NotMeasured:
        return measured()
    if jax.tree.structure(old) != jax.tree.structure(jax.eval_shape(measured)):
        return measured()  # the method asks for more than the sampler returned
    return jax.lax.cond(first, lambda: old, measured)


def _repeat(one, state, num_steps):
    """Runs optimiser steps until done or stopped; metrics are means over those run.

    Gaps and counts in a row are maxima instead: a mean would dilute them.
    """
    if num_steps == 1:
        state, _, metrics = one(state, jnp.zeros((), jnp.int32))
        metrics = {k: v.astype(jnp.float32) for k, v in metrics.items()}
        return state, metrics | {"update/steps": jnp.ones((), jnp.float32)}
    shapes = jax.eval_shape(lambda: one(state, jnp.zeros((), jnp.int32))[2])
    total = {k: jnp.zeros((), jnp.float32) for k in shapes}

    def body(carry):
        state, i, _, total = carry
        state, stop, metrics = one(state, i)
        metrics = {k: v.astype(jnp.float32) for k, v in metrics.items()}
        total = {
            k: jnp.maximum(v, metrics[k]) if _is_peak(k) else v + metrics[k]
            for k, v in total.items()
        }
        return state, i + 1, stop, total

    start = (state, jnp.zeros((), jnp.int32), jnp.zeros((), bool), total)
    state, steps, _, total = jax.lax.while_loop(
        lambda c: (c[1] < num_steps) & ~c[2], body, start
    )
    steps = steps.astype(jnp.float32)
    metrics = {k: v if _is_peak(k) else v / steps for k, v in total.items()}
    return state, metrics | {"update/steps": steps}


def _is_peak(name):  # such metrics are never negative, so a maximum may start from 0
    return name.startswith("gap/") or name.endswith(("_in_row", "_max"))


def _now_metrics(now, batch, first):
    mask = batch.samples.mask
    metrics = {}
    if isinstance(now.entropy, jax.Array):
        metrics["policy/entropy_nats"] = numerics.masked_mean(now.entropy, mask)
    try:
        log_ratio = jnp.where(mask, now.logp - batch.old.logp, 0.0)
    except NotMeasured:
        return metrics
    gap = jnp.abs(log_ratio)
    k3 = numerics.masked_mean(jnp.expm1(log_ratio) - log_ratio, mask)
    # Before the first optimiser step both are one policy: what differs is rounding.
    return metrics | {
        "gap/sampler_learner_max": jnp.where(first, jnp.max(gap), 0.0),
        "gap/sampler_learner_mean": jnp.where(
            first, numerics.masked_mean(gap, mask), 0.0
        ),
        "policy/kl_old_nats": k3,
    }


def _mass_metrics(coefficient, credits, rollout):
    try:
        p = jnp.mean(rollout.verdict.correct, 1, dtype=jnp.float32)
    except NotMeasured:  # supervised: all mass is positive, and nothing is difficult
        return {}
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
