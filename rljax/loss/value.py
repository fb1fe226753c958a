"""The critic's loss: a term whose advantage is the target value."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check
from rljax.types import LossFn, TokenStats, measured_extra, old_value


def value_loss(clip: ArrayLike = 0.2) -> LossFn:
    """max((v - R)^2, (clip(v, v_old - clip, v_old + clip) - R)^2) / 2.

    v is the current value, R the target: the term's advantage, made by
    `assign_value_target(...)`. Where the clipped error is strictly larger, no gradient
    flows.

    Args:
      clip: largest change from v_old, in units of the return; 0.2 (TRL, CleanRL), 0.5
        (verl), `jnp.inf` for none.

    Returns:
      A loss function; reads `now.extra["value"]` and `rollout.old.extra["value"]`.

    Source: Schulman et al.'s PPO code; CleanRL, TRL, verl agree (SECONDARY).
    """
    check.number("clip", clip, above=0, high=jnp.inf)

    def loss(now, credit, rollout):
        v, old, target = value(now), old_value(rollout), credit.advantage
        square = (v - target) ** 2
        bounded = (jnp.clip(v, old - clip, old + clip) - target) ** 2
        clipped = bounded > square
        return 0.5 * jnp.where(clipped, jax.lax.stop_gradient(bounded), square)

    return loss


def value(now: TokenStats) -> jax.Array:
    """f32[P, G, T]: the current value estimates, each before its token."""
    return measured_extra(
        now, "now", "value", "measure with a policy that has a value head"
    )
