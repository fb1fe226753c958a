"""Whitening: advantages centred and scaled over the whole batch.

Statistics run over all prompts, samples and hosts of the rollout batch, so a group's
advantages depend on the other groups.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Credit


def by_token(credit: Credit) -> jax.Array:
    """f32[P, G, T]: each token of a member counts by its weight."""
    return jnp.where(credit.member, credit.weight, 0.0)


def by_row(credit: Credit) -> jax.Array:
    """f32[P, G, 1]: each member counts equally, whatever its length."""
    return credit.member.astype(jnp.float32)


def whiten_by_batch(
    *,
    ddof: int = 0,
    floor: ArrayLike = 1e-8,
    share_fn: Callable[[Credit], jax.Array] = by_token,
) -> AdvantageTransform:
    """(A - mean) / sqrt(max(variance, floor)), both over the batch.

    Args:
      ddof: 0 for the population variance (OpenRLHF, the authors' framework), 1 for the
        sample variance (verl).
      floor: smallest variance, squared reward units.
      share_fn: credit -> f32[P, G, T or 1], how much each entry counts in mean and
        variance: `by_token` (OpenRLHF and verl) or `by_row`.

    Source: REINFORCE++, arXiv:2501.03262 (PAPER: authors' code).
    Variants: verl adds 1e-8 to the variance instead of a floor.
    """
    check.count("ddof", ddof, low=0)
    check.number("floor", floor, above=0)
    check.function("share_fn", share_fn, "credit")

    def apply(credit, rollout):
        del rollout
        share = share_fn(credit)
        shape = jnp.broadcast_shapes(credit.advantage.shape, share.shape)
        a, share = (jnp.broadcast_to(x, shape) for x in (credit.advantage, share))
        total = jnp.sum(share)
        center = numerics.safe_divide(_sum(share, a), total)
        square = _sum(share, (a - center) ** 2)
        variance = numerics.safe_divide(square, jnp.maximum(total - ddof, 0.0))
        high = jnp.max(jnp.where(share > 0, a, -jnp.inf))
        low = jnp.min(jnp.where(share > 0, a, jnp.inf))
        # Equal values are detected exactly: rounding must not be scaled up.
        scale = jnp.where(high > low, jax.lax.rsqrt(jnp.maximum(variance, floor)), 0.0)
        return credit.replace(advantage=(credit.advantage - center) * scale)

    return stateless(apply)


def _sum(share, values):
    return jnp.sum(jnp.where(share > 0, share * values, 0.0))
