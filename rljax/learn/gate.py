"""Gates decide whether a gradient is applied, and whether a rollout batch is reused.

A gate is no optax transformation. A refused gradient changes no parameter, no moment
and no algorithm state, whereas a gradient of zeros would (momentum, weight decay, step
counts). The learner itself refuses gradients that are not finite; that needs no gate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import check


class Gate(NamedTuple):
    """Decides whether a gradient is applied.

    init: () -> state.
    update: (grads, metrics, reuse, state) -> (accept bool[], stop bool[], state,
      metrics). `reuse` i32[] is the number of earlier passes over this rollout batch;
      `stop` ends the optimiser steps on it. If the step is not finite, the learner
      discards the gate's new state.
    """

    init: Callable[[], Any]
    update: Callable[[Any, dict, jax.Array, Any], tuple]


class Guarded(NamedTuple):
    """What `TrainState.gate` holds.

    gate: the gate's own state.
    refused_in_row: i32[] number of consecutive steps that were refused because the
      gradient, or a state after the step, was not finite.
    """

    gate: Any
    refused_in_row: jax.Array


def decided(gate: Gate, grads: Any, metrics: dict, reuse: jax.Array, state: Any):
    """(accept, stop, state, metrics) of the gate's update, checked.

    Raises:
      ValueError: when traced, unless both decisions are bool[]: one that is an array
        would broadcast over parameters, of which some would then be moved.
    """
    accept, stop, state, logged = gate.update(grads, metrics, reuse, state)
    for name, value in (("accept", accept), ("stop", stop)):
        if jnp.shape(value) or jnp.result_type(value) != jnp.bool_:
            raise ValueError(
                f"a gate must return {name} as bool[], got {check.described(value)};"
                " decide by jnp.all or jnp.any of it."
            )
    return accept, stop, state, logged


def all_of(*gates: Gate) -> Gate:
    """Accepts a gradient if all gates accept it; stops if one of them stops.

    A gate's state changes only if the gates before it accept. Without gates every
    gradient is accepted.
    """
    for i, gate in enumerate(gates):
        check.kind(f"gates[{i}] of all_of", gate, Gate, "target_kl(0.05)")

    def update(grads, metrics, reuse, state):
        accept, stop = jnp.ones((), bool), jnp.zeros((), bool)
        states, logged = [], {}
        for gate, old in zip(gates, state, strict=True):
            own_accept, own_stop, new, own = decided(gate, grads, metrics, reuse, old)
            states.append(
                jax.tree.map(lambda n, o, seen=accept: jnp.where(seen, n, o), new, old)
            )
            stop, accept = stop | (accept & own_stop), accept & own_accept
            logged |= own
        return accept, stop, tuple(states), logged

    return Gate(lambda: tuple(gate.init() for gate in gates), update)


class GradientGateState(NamedTuple):
    """Kept across rollout batches: one batch has too few steps to fill the window."""

    increments: jax.Array  # f32[W] the last accepted increments, a ring buffer
    count: jax.Array  # i32[] increments accepted so far; -1 before the first gradient
    energy: jax.Array  # f32[] of the last accepted gradient


def output_projection(grads) -> Any:
    """A decoder's gradient of its output projection; if tied, of the embedding."""
    return grads["head"] if "head" in grads else grads["embed"]


def gradient_gate(
    select_fn: Callable[[Any], Any] = output_projection,
    *,
    threshold: jax.typing.ArrayLike = 0.5,
    window: int = 20,
) -> Gate:
    """Ends the reuse of a rollout batch when the output projection's gradient jumps.

    This is dynamic gradient gating (DGG). With energy g = squared Frobenius norm of the
    selected gradient, increments D_t = g_t - g_{t-1} and their mean and standard
    deviation over a window,

        refuse and stop if the window is full, reuse > 0, (D - mean) / sd > threshold

    The first pass over a batch is never refused. A refused increment does not enter the
    window; the next increment is measured from the last accepted energy. The paper uses
    it with GRPO, the clipped ratio and `num_passes=4`.

    Args:
      select_fn: gradients -> those of the output projection, any pytree. With a value
        head: `lambda grads: output_projection(grads["policy"])`. It gets the gradients
        before any clipping, which would hide spikes.
      threshold: in standard deviations; the paper recommends 0.1 to 0.5.
      window: number of increments, W (RECONSTRUCTED; not found).

    Returns:
      A gate; logs `gate/energy` and `gate/gated`.

    Raises:
      ValueError: if an argument is out of range.

    Source: arXiv:2605.19425 (rule SECONDARY; energy as a square, population standard
      deviation plus 1e-8 and what enters the window RECONSTRUCTED).
    """
    check.function("select_fn", select_fn, "grads")
    check.number("threshold", threshold)
    check.count("window", window)

    def init():
        zero = jnp.zeros((), jnp.float32)
        increments = jnp.zeros(window, jnp.float32)
        return GradientGateState(increments, jnp.int32(-1), zero)

    def update(grads, metrics, reuse, state):
        del metrics
        leaves = jax.tree.leaves(select_fn(grads))
        energy = jnp.sum(jnp.stack([jnp.sum(x**2) for x in leaves]))
        increment = energy - state.energy
        mean, deviation = jnp.mean(state.increments), jnp.std(state.increments)
        z = (increment - mean) / (deviation + 1e-8)
        gated = (state.count >= window) & (reuse > 0) & (z > threshold)
        ring = state.increments.at[state.count % window].set(increment)
        increments = jnp.where(state.count < 0, state.increments, ring)
        pushed = GradientGateState(increments, state.count + 1, energy)
        state = jax.tree.map(lambda old, new: jnp.where(gated, old, new), state, pushed)
        logged = {"gate/energy": energy, "gate/gated": gated}
        return ~gated, gated, state, logged

    return Gate(init, update)


def target_kl(limit: jax.typing.ArrayLike) -> Gate:
    """Refuses and stops when KL(pi_old, pi) of the minibatch exceeds the limit (SB3).

    The KL is the masked mean of rho - 1 - log rho (`policy/kl_old_nats`), measured
    before the step. If it is too large, this step is refused. On the first step after
    sampling the KL is 0.

    Args:
      limit: nats; 1.5 times the `target_kl` of Stable-Baselines3.

    Raises:
      ValueError: if the limit is negative; when traced, if the rollouts have no `old`.

    Source: Stable-Baselines3 ppo.py (SECONDARY).
    Variants: Spinning Up does the same with -log rho.
    """
    check.number("limit", limit, low=0)

    def update(grads, metrics, reuse, state):
        del grads, reuse
        over = ~(_kl(metrics) <= limit)  # True for NaN
        return ~over, over, state, {}

    return Gate(lambda: (), update)


class PassState(NamedTuple):
    """What `target_kl_per_pass` remembers of the last step."""

    reuse: jax.Array  # i32[] the step's pass
    kl: jax.Array  # f32[] KL measured before the step, nats


def target_kl_per_pass(limit: jax.typing.ArrayLike) -> Gate:
    """Refuses a further pass if the KL of the last step exceeds the limit (CleanRL).

    The KL is tested only between passes, so the steps of a pass that exceeds the limit
    are all kept.

    Args:
      limit: nats.

    Raises:
      ValueError: as `target_kl`.

    Source: CleanRL cleanrl/ppo.py (SECONDARY).
    """
    check.number("limit", limit, low=0)

    def update(grads, metrics, reuse, state):
        del grads
        over = (reuse > state.reuse) & ~(state.kl <= limit)
        return ~over, over, PassState(jnp.asarray(reuse, jnp.int32), _kl(metrics)), {}

    start = PassState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))
    return Gate(lambda: start, update)


def _kl(metrics):
    if "policy/kl_old_nats" not in metrics:
        raise ValueError(
            "a KL gate needs the metric policy/kl_old_nats, which rollouts without"
            " `old` do not give; use it with sampled rollouts only."
        )
    return jnp.asarray(metrics["policy/kl_old_nats"], jnp.float32)
