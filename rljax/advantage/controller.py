"""Controllers: pure state machines that turn measurements into hyper-parameters."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import check
from rljax.advantage.algebra import AdvantageTransform
from rljax.types import Credit, Rollout


class Controller(NamedTuple):
    """`init() -> (value, state)` and `update(measurement, state) -> (value, state)`."""

    init: Callable[[], tuple[Any, Any]]
    update: Callable[[Any, Any], tuple[Any, Any]]


class ControlledState(NamedTuple):
    controller: Any
    transform: Any


def controlled(
    make: Callable[[Any], AdvantageTransform],
    controller: Controller,
    measure_fn: Callable[[Credit, Rollout], Any],
) -> AdvantageTransform:
    """Drives the hyper-parameters of a transform by a controller.

    At each update the controller sees the measurement first and its new value shapes
    the same batch. The value is logged: a NamedTuple's fields by name, else `value`.

    Args:
      make: value -> transform; the value may be traced.
      controller: the state machine.
      measure_fn: (credit, rollout) -> measurement, taken before the transform runs.
    """
    check.maker("make", make, "value")
    check.kind("controller", controller, Controller, "ema(0.1)")
    check.function("measure_fn", measure_fn, "credit, rollout")

    def init():
        value, state = controller.init()
        return ControlledState(state, make(value).init())

    def update(credit, state, rollout):
        measured = measure_fn(credit, rollout)
        value, new = controller.update(measured, state.controller)
        credit, inner = make(value).update(credit, state.transform, rollout)
        named = value._asdict() if hasattr(value, "_asdict") else {"value": value}
        return credit.log(**named), ControlledState(new, inner)

    return AdvantageTransform(init, update)


def constant(value) -> Controller:
    """Always the same value."""
    leaves = jax.tree.leaves(value)
    for leaf in leaves or [value]:
        check.number("value", leaf, low=-jnp.inf, high=jnp.inf)
    return Controller(lambda: (value, ()), lambda measurement, state: (value, state))


def schedule(fn: Callable[[jax.Array], Any]) -> Controller:
    """`fn(step)`, step i32[] counting updates from 0; optax schedules fit."""
    check.function("fn", fn, "step")
    zero = jnp.zeros((), jnp.int32)
    return Controller(
        lambda: (fn(zero), zero), lambda measurement, step: (fn(step), step + 1)
    )


class EmaState(NamedTuple):
    value: jax.Array  # f32[]
    count: jax.Array  # i32[]


def ema(rate: float, initial: float | None = None) -> Controller:
    """x <- (1 - rate) x + rate * measurement; the first measurement if no `initial`."""
    check.number("rate", rate, above=0, high=1)
    if initial is not None:
        check.number("initial", initial)
    start = jnp.zeros((), jnp.float32) if initial is None else jnp.float32(initial)

    def update(measurement, state):
        blended = (1 - rate) * state.value + rate * measurement
        if initial is None:
            blended = jnp.where(state.count == 0, measurement, blended)
        return blended, EmaState(blended, state.count + 1)

    return Controller(
        lambda: (start, EmaState(start, jnp.zeros((), jnp.int32))), update
    )


class PidState(NamedTuple):
    integral: jax.Array  # f32[]
    last_error: jax.Array  # f32[]


def pid(
    target: float,
    *,
    initial: float = 0.0,
    proportional: float = 0.0,
    integral: float = 0.0,
    derivative: float = 0.0,
    low: float = -jnp.inf,
    high: float = jnp.inf,
) -> Controller:
    """clip(initial + Kp e + Ki sum(e) + Kd (e - e_last), low, high), e = target - x.

    The sum stands still while the output is clipped (no wind-up).
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

    return Controller(lambda: (jnp.float32(initial), PidState(zero, zero)), update)
