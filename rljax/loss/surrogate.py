"""Policy-gradient surrogates: `(now, credit, rollout) -> loss f32[P, G, T]`, minimised.

A surrogate depends on the ratio and the advantage; weights and reductions belong to the
term. "Coefficient" means -dl/dlogp: how hard a token is pushed up.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.types import LossFn, Rollout, TokenStats


def log_ratio(now: TokenStats, rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: log(pi / pi_old), nats."""
    return now.logp - rollout.old.logp


def token_ratio(now: TokenStats, rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: rho = pi / pi_old, capped at e^20, where it has no gradient."""
    return jnp.exp(numerics.bounded(log_ratio(now, rollout)))


def reinforce() -> LossFn:
    """-A log pi: coefficient A (Williams 1992); reads no old statistics."""
    return lambda now, credit, rollout: -credit.advantage * now.logp


def ppo_clip(low: ArrayLike = 0.2, high: ArrayLike = 0.2) -> LossFn:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_old per token.

    Coefficient A rho, but 0 where A > 0 and rho > 1 + high, or A < 0 and rho < 1 - low.
    A ratio exactly on a bound is not clipped. `jnp.minimum` and `jnp.clip` would split
    the tie and give 3/4 of the gradient there.

    Args:
      low, high: distances of the bounds from 1; `high > low` is DAPO's clip-higher.

    Source: PPO, arXiv:1707.06347, eq. (7); clip-higher arXiv:2503.14476, eq. (10)
      (PAPER; ties RECONSTRUCTED).
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        ratio = token_ratio(now, rollout)
        return clip_loss(ratio, credit.advantage, low, high)

    return loss


def is_clipped(ratio: jax.Array, advantage: jax.Array, low, high) -> jax.Array:
    """bool: where PPO's clip removes a ratio's gradient; False exactly on a bound.

    A ratio within `numerics.ROUNDING` of 1 is never clipped, however narrow the clip.
    On the first optimiser step ratios are 1 up to rounding, whose sign must not decide.
    """
    above = (advantage > 0) & (ratio > 1 + high)
    outside = above | ((advantage < 0) & (ratio < 1 - low))
    return outside & (jnp.abs(ratio - 1) > numerics.ROUNDING)


def clip_loss(ratio: jax.Array, advantage: jax.Array, low, high) -> jax.Array:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A), for any ratio [P, G, T or 1]."""
    bound = jax.lax.stop_gradient(jnp.clip(ratio, 1 - low, 1 + high))
    clipped = is_clipped(ratio, advantage, low, high)
    return -advantage * jnp.where(clipped, bound, ratio)


def nll() -> LossFn:
    """-log pi: supervised learning; coefficient 1, the advantage is not read."""
    return lambda now, credit, rollout: -now.logp
