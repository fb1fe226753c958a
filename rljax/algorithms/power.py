"""Exponents of p and q = 1 - p that set the focus on hard prompts and on failures."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check
from rljax.algorithms.ppo_clip import ppo_clip_policy


def power(
    alpha: ArrayLike,
    *,
    scale_fn: Callable[[jax.Array], jax.Array] = adv.fade.unit_scale,
    clip: ArrayLike = 0.2,
) -> adv.Algorithm:
    """A = C q^(alpha - 1) (r - p): both masses C p q^alpha, peak at 1 / (1 + alpha).

    f = C (1 - q^alpha) / alpha; alpha = 1 is GRPO without the division by std.

    Args:
      alpha: > 0; larger focuses on harder prompts.
      scale_fn: alpha -> C, unspecified in the paper: `adv.fade.unit_scale`,
        `area_scale` or `peak_scale`.
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2607.01490 (SECONDARY).
    """
    check.number("alpha", alpha, above=0)
    check.function("scale_fn", scale_fn, "alpha")

    def factor(p):
        size = scale_fn(jnp.asarray(alpha, jnp.float32))
        return size * adv.scale.focal_factor(p, alpha - 1)

    return ppo_clip_policy(adv.center_by_group(), adv.scale_by_rate(factor), clip=clip)


def pass_at_k(k: ArrayLike, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A = k q^(k-1) (r - p), f = 1 - q^k: `power` of order k with C = k.

    p is the group's own solve rate, which makes this biased; `algorithms.pkpo` is not.

    Args:
      k: > 0, attempts per prompt.
      clip: distance of both bounds of the ratio from 1.

    Source: none, the slope of 1 - q^k (DERIVED).
    """
    check.number("k", k, above=0)
    return power(k, scale_fn=lambda alpha: alpha, clip=clip)


def f_grpo(
    gamma: ArrayLike,
    *,
    base: adv.AdvantageTransform | None = None,
    clip: ArrayLike = 0.2,
) -> adv.Algorithm:
    """A = q^gamma A_base (F-GRPO): on GRPO the mass peaks at 0.5 / (1 + gamma).

    Args:
      gamma: >= 0; larger focuses on harder prompts.
      base: makes A_base; None is GRPO's advantage. With `adv.center_by_group()` this is
        `power(1 + gamma)`.
      clip: distance of both bounds of the ratio from 1.

    Source: F-GRPO (SECONDARY).
    """
    check.number("gamma", gamma, low=0)
    if base is not None:
        check.kind("base", base, adv.AdvantageTransform, "center_by_group()")
    grpo = adv.normalise_by_group(ddof=0, epsilon=0.0)
    base = grpo if base is None else base
    return ppo_clip_policy(base, adv.scale_by_focal_factor(gamma), clip=clip)


def rs_grpo(*, beta: ArrayLike = 2.0, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A = (e^(beta r) / mean e^(beta r) - 1) / beta: f = log-mean-exp / beta (RS-GRPO).

    The mass peaks at p = 1 / (1 + e^(beta / 2)).

    Args:
      beta: strength of risk seeking, > 0.
      clip: distance of both bounds of the ratio from 1.

    Source: code Jackory/RS-GRPO (PAPER).
    """
    return ppo_clip_policy(adv.center_by_risk(beta), clip=clip)


def asym_grpo(delta: ArrayLike, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A_S = q, A_F = -p / delta: m_S / m_F = delta (AsymGRPO of the FADE paper).

    Args:
      delta: > 1 favours successes, < 1 failures.
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2607.01490 (SECONDARY).
    """
    check.number("delta", delta, above=0)
    return ppo_clip_policy(
        adv.center_by_group(), adv.scale_negative(1 / delta), clip=clip
    )


def asym_grpo_by_odds(
    *, success: ArrayLike = 0.9, failure: ArrayLike = 0.4, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """A_S = (q/p)^success, A_F = -(p/q)^failure (another AsymGRPO, of Gu et al.).

    Exponents (.5, .5) give GRPO, (0, 0) advantages of 1 and -1.

    Args:
      success, failure: exponents, >= 0.
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2604.04894 (SECONDARY).
    """
    check.number("success", success, low=0)
    check.number("failure", failure, low=0)
    return ppo_clip_policy(
        adv.assign_by_class(
            lambda g: (g.q / g.p) ** success, lambda g: -((g.p / g.q) ** failure)
        ),
        clip=clip,
    )


def power_asym(
    success: ArrayLike, failure: ArrayLike, *, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """A_S = q^success, A_F = -p^failure: masses p q^success, q p^failure.

    Successes count most where they are rare, failures where they are rare. Exponents
    (1, 1) give Dr. GRPO's advantage.

    Args:
      success, failure: exponents, > 0.
      clip: distance of both bounds of the ratio from 1.

    Source: a guess at "Power asym" of arXiv:2607.01490 (RECONSTRUCTED; do not claim to
      reproduce its rows).
    """
    check.number("success", success, above=0)
    check.number("failure", failure, above=0)
    return ppo_clip_policy(
        adv.assign_by_class(lambda g: g.q**success, lambda g: -(g.p**failure)),
        clip=clip,
    )
