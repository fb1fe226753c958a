"""How a metric adds up over the optimiser steps of a training step.

A plain number is a `Mean`. Another rule is chosen by the type of the logged value,
`credit.log(largest=Max(x))`; the value keeps this type up to the run loop.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metric:
    """A number with a rule for adding it up over optimiser steps.

    value: f32[], or f32[K] after K training steps.
    """

    value: Any
    start: ClassVar[float] = 0.0

    def plus(self, other: "Metric") -> Self:
        """Adds another optimiser step."""
        return type(self)(self.value + other.value)

    def over(self, num_steps: jax.Array | float) -> Any:
        """The metric to report after `num_steps` steps were added."""
        del num_steps
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mean(Metric):
    """The mean over the optimiser steps; reported as a plain number."""

    def over(self, num_steps: jax.Array | float) -> Any:
        return self.value / num_steps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sum(Metric):
    """A count: the total over all steps."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Max(Metric):
    """The largest value of any step; a mean would dilute it."""

    start: ClassVar[float] = -jnp.inf

    def plus(self, other: Metric) -> Self:
        return type(self)(jnp.maximum(self.value, other.value))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fault(Metric):
    """A count of events that must not happen. The run loop stops unless it is 0."""


def as_float32(value: Any) -> Any:
    """The same number or `Metric`, in float32."""
    if isinstance(value, Metric):
        return type(value)(jnp.asarray(value.value, jnp.float32))
    return jnp.asarray(value, jnp.float32)


def addable(metrics: Mapping[str, Any]) -> dict[str, Metric]:
    """Metrics of one optimiser step as float32 `Metric`s; numbers become `Mean`s."""
    found = {name: as_float32(value) for name, value in metrics.items()}
    return {k: v if isinstance(v, Metric) else Mean(v) for k, v in found.items()}


def nothing(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The start values for adding up such metrics with `plus`."""
    return {k: type(m)(jnp.asarray(m.start, jnp.float32)) for k, m in metrics.items()}


def numbers(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers of metrics, by name."""
    return {k: v.value if isinstance(v, Metric) else v for k, v in metrics.items()}


def faults(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The plain numbers of the `Fault`s, by name."""
    return {k: v.value for k, v in metrics.items() if isinstance(v, Fault)}
