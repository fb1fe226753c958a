"""Surrogates of the token ratio rho = pi / pi_old other than PPO's clip.

Losses are `(now, credit, rollout) -> f32[P, G, T]`, minimised. A is the advantage,
"coefficient" means -dl/dlogp, sg[x] is x without its gradient. Bounds named `low` and
`high` are distances from 1 (the epsilon of papers); those named `floor` and `cap` are
absolute.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.loss.surrogate import clip_loss, log_ratio, token_ratio
from rljax.types import LossFn


def unclipped_ratio() -> LossFn:
    """-A rho without a clip: coefficient A rho (conservative policy iteration)."""
    return lambda now, credit, rollout: -credit.advantage * token_ratio(now, rollout)


def dual_clip(
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
    cap: ArrayLike = 3.0,
) -> LossFn:
    """PPO's clip, and -A min(rho, cap) for A < 0, which bounds the loss of bad tokens.

    Coefficient A rho, but 0 where PPO clips and where A < 0 and rho > cap. A ratio
    exactly on a bound is not clipped.

    Args:
      low, high: distances of PPO's bounds from 1.
      cap: bound of the ratio for A < 0, > 1; 3 (verl), 10 (DAPO's and JustRL's
        scripts).

    Source: Ye et al., arXiv:1912.09729, eq. (5); verl `vanilla` (SECONDARY).
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)
    check.number("cap", cap, above=1)

    def loss(now, credit, rollout):
        a, ratio = credit.advantage, token_ratio(now, rollout)
        capped = (a < 0) & (ratio > cap)
        return jnp.where(capped, -cap * a, clip_loss(ratio, a, low, high))

    return loss


def cispo(*, cap: ArrayLike = 5.0, floor: ArrayLike = 0.0) -> LossFn:
    """-sg[clip(rho, floor, cap)] A log pi: every token keeps a gradient (CISPO).

    Coefficient clip(rho) A.

    Args:
      cap, floor: absolute bounds of the ratio, as in TRL, ms-swift and SkyRL-tx; 5.0 is
        ScaleRL's cap, the paper's is unknown.

    Source: MiniMax-M1, arXiv:2506.13585, eqs. (4)-(5) (SECONDARY).
    """
    check.number("floor", floor)
    check.number("cap", cap, above=0, high=jnp.inf)
    check.ordered(floor=floor, cap=cap)

    def loss(now, credit, rollout):
        weight = jnp.clip(token_ratio(now, rollout), floor, cap)
        return -jax.lax.stop_gradient(weight) * credit.advantage * now.logp

    return loss


def cispo_band(low: ArrayLike, high: ArrayLike) -> LossFn:
    """CISPO with bounds 1 - low and 1 + high, as verl, slime and the paper write them.

    verl's example script has low 10 (no floor) and high 0.2, which is `cispo(cap=1.2)`.
    """
    check.number("low", low, low=0)
    check.number("high", high, low=0)
    return cispo(floor=1 - low, cap=1 + high)


def sapo(positive: ArrayLike = 1.0, negative: ArrayLike = 1.05) -> LossFn:
    """-A (4 / tau) sigmoid(tau (rho - 1)): a soft gate instead of a clip (SAPO).

    Coefficient A rho 4 s (1 - s) with s the sigmoid: it is A at rho = 1 and decays on
    both sides.

    Args:
      positive, negative: tau for A > 0 and for A <= 0, > 0.

    Source: arXiv:2511.20347 (SECONDARY; verl, TRL, ms-swift agree).
    Variants: verl clamps log rho to +-20, here only above.
    """
    check.number("positive", positive, above=0)
    check.number("negative", negative, above=0)

    def loss(now, credit, rollout):
        ratio = token_ratio(now, rollout)
        tau = jnp.where(credit.advantage > 0, positive, negative)
        return -credit.advantage * 4 / tau * jax.nn.sigmoid(tau * (ratio - 1))

    return loss


def prefix_minimum(d: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[..., T]: the minimum of d over the tokens before each one; 0 for the first.

    Args:
      d: f32[..., T] log-ratios, nats.
      mask: bool[..., T]; tokens outside it are ignored.
    """
    inclusive = jax.lax.cummin(jnp.where(mask, d, jnp.inf), axis=d.ndim - 1)
    before = jnp.roll(inclusive, 1, -1).at[..., 0].set(jnp.inf)
    return jnp.where(jnp.isposinf(before), 0.0, before)


def minpro(low: ArrayLike = 1.0, high: ArrayLike = 0.28) -> LossFn:
    """CISPO with the ratio times the smallest ratio of its prefix (MinPRO).

    -sg[clip(rho_t min_{s<t} rho_s, 1 - low, 1 + high)] A log pi: after a token that has
    become unlikely all later tokens weigh less. Coefficient clip(...) A.

    Args:
      low: distance of the floor from 1. The default 1, which is ours, is no floor; with
        0.2 most of the effect is lost.
      high: distance of the cap from 1.

    Source: arXiv:2601.22718 (objective SECONDARY; both bounds RECONSTRUCTED).
    Variants: some re-implementations include the token itself in the minimum; the text
      says "preceding prefix".
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        d = log_ratio(now, rollout)
        d = numerics.bounded(d + prefix_minimum(d, rollout.samples.mask))
        weight = jax.lax.stop_gradient(jnp.clip(jnp.exp(d), 1 - low, 1 + high))
        return -weight * credit.advantage * now.logp

    return loss
