"""Controllers: pure state machines that map measurements to hyper-parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, Algorithm
from rljax.types import Credit, Rollout


class Controller(NamedTuple):
    """`init() -> (value, state)` and `update(measurement, state) -> (value, state)`."""

    init: Callable[[], tuple[Any, Any]]
    update: Callable[[Any, Any], tuple[Any, Any]]


class ControlledState(NamedTuple):
    """States of the controller and of the transform it controls."""

    controller: Any
    transform: Any


def controlled(
    make: Callable[[Any], AdvantageTransform],
    controller: Controller,
    measure_fn: Callable[[Credit, Rollout], Any],
) -> AdvantageTransform:
    """A transform whose hyper-parameters a controller sets.

    At each update the controller first sees the measurement; its new value is used for
    the same batch. The value is logged: a NamedTuple's fields by name, else as `value`.

    Args:
      make: value -> transform; the value may be traced.
      controller: maps measurements to values.
      measure_fn: (credit, rollout) -> measurement, taken before the transform runs.

    Returns:
      A transform whose state is a `ControlledState`.
    """
    check.maker("make", make, "value")
    check.kind("controller", controller, Controller, "ema(0.1)")
    check.function("measure_fn", measure_fn, "credit, rollout")

    def init():
        value, state = controller.init()
        return ControlledState(state, make(value).init())

    def update(credit, rollout, state):
        measured = measure_fn(credit, rollout)
        value, new = controller.update(measured, state.controller)
        credit, inner = make(value).update(credit, rollout, state.transform)
        return credit.log(**_named(value)), ControlledState(new, inner)

    return AdvantageTransform(init, update)


def _named(value) -> dict[str, Any]:
    return value._asdict() if hasattr(value, "_asdict") else {"value": value}


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
    """An algorithm whose hyper-parameters a controller sets once per optimiser step.

    In `weigh` the controller first sees the measurement of the whole minibatch; its new
    value is used for the same minibatch. So microbatches change nothing, and a refused
    step leaves the controller's state as it was. Advantage chains run once per rollout
    batch and see the value of the last optimiser step.

    Args:
      make: value -> algorithm, with the same terms for every value. The value may be
        traced. Transforms may depend on it (`scale_weight`), loss functions may not.
      controller: maps measurements to values.
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
        return numerics.strongly_typed(ControlledAlgorithmState(state, value, inner))

    def credit(rollout, state):
        inner = make(state.value)
        credits, new, metrics = inner.credit(rollout, state.algorithm)
        return credits, state._replace(algorithm=new), metrics

    def weigh(credits, rollout, state):
        measured = jax.lax.stop_gradient(measure_fn(credits, rollout))
        value, new = controller.update(measured, state.controller)
        credits, inner, metrics = make(value).weigh(credits, rollout, state.algorithm)
        state = ControlledAlgorithmState(new, value, inner)
        logged = {f"control/{k}": v for k, v in _named(value).items()}
        return credits, state, metrics | logged

    def loss(now, credits, rollout):
        value, _ = controller.init()
        total = make(value).loss(now, credits, rollout)
        _require_independent(
            lambda value: make(value).loss(now, credits, rollout), value
        )
        return total

    def local():
        return make(controller.init()[0]).local()

    return Algorithm(init, credit, weigh, loss, local)


def _require_independent(fn: Callable[[Any], jax.Array], value) -> None:
    # Under vmap an output that depends on the value is batched; out_axes=None then
    # raises. This only traces, nothing is computed.
    many = jax.tree.map(lambda x: jnp.asarray(x)[None], value)
    try:
        jax.eval_shape(jax.vmap(fn, out_axes=None), many)
    except ValueError as error:
        raise ValueError(
            "loss functions of a controlled algorithm must not depend on the controlled"
            " value, but one does; move it to a transform, such as scale_weight(value)"
            " after the reduction."
        ) from error


def constant(value) -> Controller:
    """Always the same value."""
    leaves = jax.tree.leaves(value)
    for leaf in leaves or [value]:
        check.number("value", leaf, low=-jnp.inf, high=jnp.inf)
    return Controller(lambda: (value, ()), lambda measurement, state: (value, state))


def schedule(fn: Callable[[jax.Array], Any]) -> Controller:
    """`fn(step)`, with step i32[] counting updates from 0; takes optax schedules."""
    check.function("fn", fn, "step")
    zero = jnp.zeros((), jnp.int32)
    return Controller(
        lambda: (fn(zero), zero), lambda measurement, step: (fn(step), step + 1)
    )


class EmaState(NamedTuple):
    """State of `ema`."""

    value: jax.Array  # f32[] the average
    count: jax.Array  # i32[] updates so far


def ema(rate: ArrayLike, initial: ArrayLike | None = None) -> Controller:
    """x <- (1 - rate) x + rate * measurement; starts at `initial`.

    Args:
      rate: weight of the new measurement, a fraction in (0, 1].
      initial: None starts at the first measurement.
    """
    check.number("rate", rate, above=0, high=1)
    if initial is not None:
        check.number("initial", initial)
    start = (
        jnp.zeros((), jnp.float32)
        if initial is None
        else jnp.asarray(initial, jnp.float32)
    )

    def update(measurement, state):
        blended = (1 - rate) * state.value + rate * measurement
        if initial is None:
            blended = jnp.where(state.count == 0, measurement, blended)
        return blended, EmaState(blended, state.count + 1)

    return Controller(
        lambda: (start, EmaState(start, jnp.zeros((), jnp.int32))), update
    )


class PidState(NamedTuple):
    """State of `pid`."""

    integral: jax.Array  # f32[] sum of errors
    last_error: jax.Array  # f32[] target - measurement of the last update


def pid(
    target: ArrayLike,
    *,
    initial: ArrayLike = 0.0,
    proportional: ArrayLike = 0.0,
    integral: ArrayLike = 0.0,
    derivative: ArrayLike = 0.0,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> Controller:
    """clip(initial + Kp e + Ki sum(e) + Kd (e - e_last), low, high), e = target - x.

    The sum does not change while the output is clipped (no wind-up).

    Args:
      target: of the measurement x.
      initial: output at zero error, sum and change.
      proportional, integral, derivative: Kp, Ki, Kd.
      low, high: bounds of the output.
    """
    check.number("target", target)
    check.number("initial", initial)
    check.number("proportional", proportional)
    check.number("integral", integral)
    check.number("derivative", derivative)
    check.ordered(low=low, high=high)
    zero = jnp.zeros((), jnp.float32)

    def update(measurement, state):
        error = target - jnp.asarray(measurement, jnp.float32)
        total = state.integral + error
        raw = initial + proportional * error + integral * total
        raw += derivative * (error - state.last_error)
        value = jnp.clip(raw, low, high)
        total = jnp.where(value == raw, total, state.integral)
        return value, PidState(total, error)

    return Controller(
        lambda: (jnp.asarray(initial, jnp.float32), PidState(zero, zero)), update
    )


def delayed(controller: Controller) -> Controller:
    """The controller with its values one update late."""
    check.kind("controller", controller, Controller, "ema(0.1)")

    def init():
        value, state = controller.init()
        return value, (value, state)

    def update(measurement, state):
        value, inner = state
        return value, controller.update(measurement, inner)

    return Controller(init, update)
