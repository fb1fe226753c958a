"""Shaping: rewards and advantages changed by length, confidence or a teacher.

All belong into `advantage=`. Transforms that shape the reward stand before the
baseline, those that shape the advantage after it. The verdict itself never changes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage import order
from rljax.advantage.algebra import AdvantageTransform, stateless


def rescale_reward(*, scale: ArrayLike, shift: ArrayLike) -> AdvantageTransform:
    """scale r + shift; for DAPO's rewards of -1 and 1: scale 2, shift -1."""
    check.number("scale", scale)
    check.number("shift", shift)
    return stateless(lambda c, r: c.replace(advantage=scale * c.advantage + shift))


def punish_overlong(
    *, max_tokens: int, buffer: float | None = None
) -> AdvantageTransform:
    """Adds DAPO's soft punishment of overlong completions, in [-1, 0], to the reward.

    It is 0 up to max_tokens - buffer, falls linearly as
    ((max_tokens - buffer) - length) / buffer, and is -1 from max_tokens on. Place it
    before the baseline.

    Args:
      max_tokens: completion tokens at which the punishment is -1.
      buffer: length of the slope, tokens, at most max_tokens; None: a fifth of it, the
        paper's 4096 of 20480.

    Source: arXiv:2503.14476, eq. (13) (PAPER).
    Variants: Tunix counts characters and does not stop at -1; TRL does as here.
    """
    check.number("max_tokens", max_tokens, above=0)
    buffer = max_tokens / 5 if buffer is None else buffer
    check.number("buffer", buffer, above=0, high=max_tokens)

    def apply(credit, rollout):
        length = rollout.samples.length.astype(jnp.float32)
        slope = (max_tokens - buffer - length) / buffer
        return credit.replace(
            advantage=credit.advantage + jnp.clip(slope, -1.0, 0.0)[..., None]
        )

    return stateless(apply)


def summed(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[P, G, 1]: sum over a row's tokens."""
    return jnp.sum(jnp.where(mask, log_ratio, 0.0), -1, keepdims=True)


def averaged(log_ratio: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[P, G, 1]: mean over a row's tokens; unlike the sum, independent of length."""
    return numerics.masked_mean(log_ratio, mask, -1, keepdims=True)


def punish_confident_errors(
    alpha: ArrayLike = 1.0,
    confidence_fn: Callable[[jax.Array, jax.Array], jax.Array] = summed,
) -> AdvantageTransform:
    """A (1 + alpha softplus(c)) where A < 0, c = log(pi_old / pi_ref) of the row (ACE).

    At c = 0 the factor is already 1 + 0.69 alpha. Place it after the baseline.

    Args:
      alpha: strength, >= 0; 1 is a placeholder, the paper's value is unknown.
      confidence_fn: (log-ratios, mask) -> c: `summed` (the paper's) or `averaged`.

    Returns:
      A stateless transform; reads `rollout.reference` and `rollout.old`.

    Source: arXiv:2602.21420, abstract (c PAPER; the multiplier RECONSTRUCTED).
    """
    check.number("alpha", alpha, low=0)
    check.function("confidence_fn", confidence_fn, "log_ratio, mask")

    def apply(credit, rollout):
        ratio = rollout.old.logp - rollout.reference.logp
        c = confidence_fn(ratio, rollout.samples.mask)
        factor = jnp.where(credit.advantage < 0, 1 + alpha * jax.nn.softplus(c), 1.0)
        return credit.replace(advantage=credit.advantage * factor)

    return stateless(apply)


def follow_teacher_by_entropy(
    *,
    beta: ArrayLike = 0.1,
    entropy_quantile: ArrayLike = 0.8,
) -> AdvantageTransform:
    """A + beta omega d: towards the teacher at low entropy, away at high (DASD).

        omega = tanh((tau - H) / sigma) sigmoid(|d| - 1),  d = gap / mean |gap|

    gap = log(pi_teacher / pi_old) of a token; tau is a quantile and sigma the mean
    absolute deviation of the entropies H. All statistics run over the row.

    Args:
      beta: strength; 0.1 is a placeholder, the paper's value is unknown.
      entropy_quantile: fraction below tau. 0.8 repels the top 20 % of tokens; the
        paper's "rho = 0.20" could also mean 0.2, which repels 80 %.

    Returns:
      A stateless transform; its advantage is f32[P, G, T]. Reads `rollout.old` and
      `rollout.teacher`: the same weights given privileged information.

    Source: arXiv:2605.22263 (omega and A SECONDARY; both normalisers and the quantile
      RECONSTRUCTED).
    """
    check.number("beta", beta, low=0)
    check.number("entropy_quantile", entropy_quantile, low=0, high=1)

    def apply(credit, rollout):
        mask, entropy = rollout.samples.mask, rollout.old.entropy
        gap = rollout.teacher.logp - rollout.old.logp
        # d is relative to its mean: for a teacher that agrees it would be all rounding.
        gap = jnp.where(mask & (jnp.abs(gap) > numerics.ROUNDING), gap, 0.0)
        d = gap / jnp.maximum(averaged(jnp.abs(gap), mask), 1e-8)
        tau = order.quantile(entropy, mask, entropy_quantile)
        deviation = averaged(jnp.abs(entropy - averaged(entropy, mask)), mask)
        direction = jnp.tanh((tau - entropy) / jnp.maximum(deviation, 1e-8))
        push = direction * jax.nn.sigmoid(jnp.abs(d) - 1) * d
        push = jnp.where(mask, push, 0.0)
        return credit.replace(advantage=credit.advantage + beta * push)

    return stateless(apply)
