"""Filters that keep some rows of each group, for `weighting=`.

Placed before a reduction, its divisor counts the kept rows' tokens alone. Rows that are
left out still count in the statistics of their group, which were taken before.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Rollout


def keep_rows(fn: Callable[[Rollout], jax.Array]) -> AdvantageTransform:
    """Weight 0 for the rows where `fn(rollout)`, bool[P, G], does not hold."""
    check.function("fn", fn, "rollout")
    return stateless(
        lambda c, r: c.replace(weight=jnp.where(fn(r)[..., None], c.weight, 0.0))
    )


def keep_correct() -> AdvantageTransform:
    """Successes alone, by `verdict.correct`."""
    return keep_rows(lambda rollout: rollout.verdict.correct)


def keep_incorrect() -> AdvantageTransform:
    """Failures alone, by `verdict.correct`."""
    return keep_rows(lambda rollout: ~rollout.verdict.correct)
