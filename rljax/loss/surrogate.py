"""Policy-gradient surrogates: `(now, credit, rollout) -> loss f32[P, G, T]`, minimised.

Weights and reductions belong to the term; a surrogate knows ratio and advantage alone.
`coefficient` below is -dl/dlogp, how hard a token is pushed up.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.types import LossFn, Rollout, TokenStats


def log_ratio(now: TokenStats, rollout: Rollout) -> jax.Array:
    """log(pi / pi_old) f32[P, G, T], nats."""
    return now.logp - rollout.old.logp


def token_ratio(now: TokenStats, rollout: Rollout) -> jax.Array:
    """rho = pi / pi_old f32[P, G, T]; beyond e^20 it is e^20, without a gradient."""
    return jnp.exp(numerics.bounded(log_ratio(now, rollout)))


def reinforce() -> LossFn:
    """-A log pi: coefficient A (Williams 1992); reads no old statistics."""
    return lambda now, credit, rollout: -credit.advantage * now.logp


def ppo_clip(low: ArrayLike = 0.2, high: ArrayLike = 0.2) -> LossFn:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A), rho = pi / pi_old per token.

    Coefficient A rho, but 0 where A > 0 and rho > 1 + high, or A < 0 and rho < 1 - low.
    A ratio exactly on a bound is not clipped; `minimum` of the two would split ties and
    give 3/4 of the gradient there.

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
    """bool: where the clip removes a ratio's gradient; not on a bound itself.

    A ratio within `numerics.ROUNDING` of 1 is never clipped, however narrow the clip:
    the first step's ratios are 1 up to rounding, and its sign must not decide.
    """
    above = (advantage > 0) & (ratio > 1 + high)
    outside = above | ((advantage < 0) & (ratio < 1 - low))
    return outside & (jnp.abs(ratio - 1) > numerics.ROUNDING)


def clip_loss(ratio: jax.Array, advantage: jax.Array, low, high) -> jax.Array:
    """-min(ratio A, clip(ratio, 1 - low, 1 + high) A) for a ratio of any kind."""
    bound = jax.lax.stop_gradient(jnp.clip(ratio, 1 - low, 1 + high))
    clipped = is_clipped(ratio, advantage, low, high)
    return -advantage * jnp.where(clipped, bound, ratio)


def nll() -> LossFn:
    """-log pi: supervised learning as a term; coefficient 1 whatever the reward."""
    return lambda now, credit, rollout: -now.logp
