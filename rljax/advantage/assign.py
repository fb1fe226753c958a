"""Assignments: advantages that replace the reward.

A method without state on rewards 0 and 1 amounts to two functions of the group's solve
rate p: the advantage A_S of a success and A_F of a failure. Equivalently, to the masses
m_S = p A_S and m_F = -(1 - p) A_F. If both classes have the same scale, chain
`center_by_group()` and `scale_by_rate(fn)`; otherwise use `assign_by_class`.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check
from rljax.advantage import solve_rate
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.advantage.solve_rate import Group


def assign_constant(value: ArrayLike) -> AdvantageTransform:
    """The same advantage everywhere; for example a coefficient of the whole term."""
    check.number("value", value)
    return stateless(
        lambda c, r: c.replace(
            advantage=jnp.full(c.advantage.shape, value, jnp.float32)
        )
    )


def assign_by_class(
    success_fn: Callable[[Group], ArrayLike],
    failure_fn: Callable[[Group], ArrayLike],
) -> AdvantageTransform:
    """A = success_fn(group) for correct samples, failure_fn(group) for the others.

    It replaces the advantage so far and reads only `verdict.correct`. A value that is
    not finite (1 / p in a group without successes) counts as 0.

    Args:
      success_fn, failure_fn: `Group` -> f32[P, 1, 1] or a number.
    """
    check.function("success_fn", success_fn, "group")
    check.function("failure_fn", failure_fn, "group")

    def apply(credit, rollout):
        group = solve_rate.by_correct(rollout, credit.member)
        correct = rollout.verdict.correct[..., None]
        value = jnp.where(correct, success_fn(group), failure_fn(group))
        value = jnp.where(jnp.isfinite(value), value, 0.0)
        return credit.replace(advantage=value.astype(jnp.float32))

    return stateless(apply)
