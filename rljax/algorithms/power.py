"""The axes of difficulty and sign, turned by exponents of p and q = 1 - p."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import advantage as adv
from rljax import check
from rljax.advantage import fade, scale
from rljax.algorithms import clipped


def power(
    alpha: float,
    *,
    scale_fn: Callable[[jax.Array], jax.Array] = fade.unit_scale,
    clip: float = 0.2,
) -> adv.Algorithm:
    """A = C q^(alpha - 1) (r - p): both masses C p q^alpha, peak at 1 / (1 + alpha).

    f = C (1 - q^alpha) / alpha; alpha = 1 is mean-only GRPO.

    Args:
      alpha: > 0, larger is harder.
      scale_fn: C of alpha: `fade.unit_scale`, `area_scale` or `peak_scale`.
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2607.01490 (SECONDARY; C is unspecified there).
    """
    check.number("alpha", alpha, above=0)
    check.function("scale_fn", scale_fn, "alpha")

    def factor(p):
        size = scale_fn(jnp.asarray(alpha, jnp.float32))
        return size * scale.focal_factor(p, alpha - 1)

    return clipped.ppo_clip_policy(
        adv.center_by_group(), adv.scale_by_rate(factor), clip=clip
    )


def pass_at_k(k: float, *, clip: float = 0.2) -> adv.Algorithm:
    """A = k q^(k-1) (r - p), f = 1 - q^k: `power` of order k with C = k (DERIVED).

    p is the group's own rate; `algorithms.pkpo` and others are free of that error.
    """
    check.number("k", k, above=0)
    return power(k, scale_fn=lambda alpha: alpha, clip=clip)


def f_grpo(
    gamma: float,
    *,
    base: adv.AdvantageTransform | None = None,
    clip: float = 0.2,
) -> adv.Algorithm:
    """A = q^gamma A_base (F-GRPO): on GRPO the mass peaks at 0.5 / (1 + gamma).

    `base` is GRPO's advantage by default; on `adv.center_by_group()` this is
    `power(1 + gamma)`. SECONDARY.
    """
    check.number("gamma", gamma, low=0)
    if base is not None:
        check.kind("base", base, adv.AdvantageTransform, "center_by_group()")
    grpo = adv.chain(adv.center_by_group(), adv.scale_by_group_std())
    base = grpo if base is None else base
    return clipped.ppo_clip_policy(base, adv.scale_by_focal_factor(gamma), clip=clip)


def rs_grpo(*, beta: float = 2.0, clip: float = 0.2) -> adv.Algorithm:
    """A = (e^(beta r) / mean e^(beta r) - 1) / beta: f = log-mean-exp / beta (RS-GRPO).

    Source: Jackory/RS-GRPO (PAPER: authors' code). Mass peak 1 / (1 + e^(beta/2)).
    """
    return clipped.ppo_clip_policy(adv.center_by_risk(beta), clip=clip)


def asym_grpo(delta: float, *, clip: float = 0.2) -> adv.Algorithm:
    """A_S = q, A_F = -p / delta: m_S / m_F = delta (AsymGRPO of the FADE paper).

    delta > 1 favours successes, < 1 failures. Source: arXiv:2607.01490 (SECONDARY).
    """
    check.number("delta", delta, above=0)
    return clipped.ppo_clip_policy(
        adv.center_by_group(), adv.scale_negative(1 / delta), clip=clip
    )


def asym_grpo_by_odds(
    *, success: float = 0.9, failure: float = 0.4, clip: float = 0.2
) -> adv.Algorithm:
    """A_S = (q/p)^success, A_F = -(p/q)^failure: another AsymGRPO, of Gu et al.

    (.5, .5) is GRPO, (0, 0) is +-1. Source: arXiv:2604.04894 (SECONDARY).
    """
    check.number("success", success, low=0)
    check.number("failure", failure, low=0)
    return clipped.ppo_clip_policy(
        adv.assign_by_class(
            lambda g: (g.q / g.p) ** success, lambda g: -((g.p / g.q) ** failure)
        ),
        clip=clip,
    )


def power_asym(success: float, failure: float, *, clip: float = 0.2) -> adv.Algorithm:
    """A_S = q^success, A_F = -p^failure: masses p q^success, q p^failure.

    Each class focuses on its own rare event; (1, 1) is Dr. GRPO. RECONSTRUCTED: a guess
    at "Power asym" of arXiv:2607.01490; do not claim to reproduce its rows.
    """
    check.number("success", success, above=0)
    check.number("failure", failure, above=0)
    return clipped.ppo_clip_policy(
        adv.assign_by_class(lambda g: g.q**success, lambda g: -(g.p**failure)),
        clip=clip,
    )
