"""One controller over several terms: a whole algorithm driven by one measurement."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage.algebra import Algorithm
from rljax.advantage.controller import Controller
from rljax.types import Credit, Rollout


class ControlledAlgorithmState(NamedTuple):
    """The controller's state, its last value, and the algorithm's own state."""

    controller: Any
    value: Any
    algorithm: Any


def controlled_algorithm(
    make: Callable[[Any], Algorithm],
    controller: Controller,
    measure_fn: Callable[[tuple[Credit, ...], Rollout], Any],
) -> Algorithm:
    """Drives the hyper-parameters of an algorithm, once per optimiser step.

    In `weigh` the controller sees its measurement of the whole minibatch first, and the
    new value shapes the same minibatch; so it adds up over microbatches, and a refused
    step leaves it where it was. Advantage chains, which run once per rollout batch,
    see the value of the last optimiser step.

    Args:
      make: value -> algorithm, of the same terms for every value; the value may be
        traced and may reach transforms (`scale_weight`), not loss functions.
      controller: the state machine.
      measure_fn: (credits in the order of terms, minibatch) -> measurement; it may
        read `rollout.current`.

    Returns:
      An algorithm; logs the value under `control/`, a NamedTuple's fields by name.

    Raises:
      ValueError: when traced, if a loss function depends on the value.
    """
    check.maker("make", make, "value")
    check.kind("controller", controller, Controller, "ema(0.1)")
    check.function("measure_fn", measure_fn, "credits, rollout")

    def init():
        value, state = controller.init()
        inner = make(value).init()
        return numerics.strong(ControlledAlgorithmState(state, value, inner))

    def credit(rollout, state):
        inner = make(state.value)
        credits, new, metrics = inner.credit(rollout, state.algorithm)
        return credits, state._replace(algorithm=new), metrics

    def weigh(credits, rollout, state):
        measured = jax.lax.stop_gradient(measure_fn(credits, rollout))
        value, new = controller.update(measured, state.controller)
        credits, inner, metrics = make(value).weigh(credits, rollout, state.algorithm)
        state = ControlledAlgorithmState(new, value, inner)
        named = value._asdict() if hasattr(value, "_asdict") else {"value": value}
        return credits, state, metrics | {f"control/{k}": v for k, v in named.items()}

    def loss(now, credits, rollout):
        value, _ = controller.init()
        total = make(value).loss(now, credits, rollout)
        _require_independent(
            lambda value: make(value).loss(now, credits, rollout), value
        )
        return total

    return Algorithm(init, credit, weigh, loss)


def _require_independent(fn: Callable[[Any], jax.Array], value) -> None:
    # Mapping over an argument shows what depends on it: an output that does is mapped,
    # and asking for an unmapped one raises. Traced only, nothing is computed.
    many = jax.tree.map(lambda x: jnp.asarray(x)[None], value)
    try:
        jax.eval_shape(jax.vmap(fn, out_axes=None), many)
    except ValueError as error:
        raise ValueError(
            "loss functions of a controlled algorithm must not depend on the controlled"
            " value, but one does; move it to a transform, such as scale_weight(value)"
            " after the reduction."
        ) from error
