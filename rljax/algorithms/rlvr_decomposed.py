"""Positive and negative samples treated separately: PSR, NSR and W-REINFORCE."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check
from rljax.algorithms.ppo_clip import ppo_clip_policy


def psr(
    *, clip: ArrayLike = 0.2, rows: adv.AdvantageTransform | None = None
) -> adv.Algorithm:
    """A_S = 1, A_F = 0: positive sample reinforcement; masses p, 0; f = p.

    The authors drop failures before the token mean: the divisor counts successes only.

    Args:
      clip: distance of both bounds of the ratio from 1.
      rows: the rows that the mean runs over; None is `adv.keep_correct()`,
        `adv.chain()` keeps all.

    Source: code TianHongZXY/RLVR-Decomposed (PAPER).
    """
    rows = adv.keep_correct() if rows is None else rows
    assign = adv.assign_by_class(lambda g: 1.0, lambda g: 0.0)
    return ppo_clip_policy(assign, clip=clip, rows=rows)


def nsr(
    *, clip: ArrayLike = 0.2, rows: adv.AdvantageTransform | None = None
) -> adv.Algorithm:
    """A_S = 0, A_F = -1: negative sample reinforcement; masses 0, q; f = p.

    The authors drop successes before the token mean: the divisor counts failures only.

    Args:
      clip: distance of both bounds of the ratio from 1.
      rows: the rows that the mean runs over; None is `adv.keep_incorrect()`,
        `adv.chain()` keeps all.

    Source: code TianHongZXY/RLVR-Decomposed (PAPER).
    """
    rows = adv.keep_incorrect() if rows is None else rows
    assign = adv.assign_by_class(lambda g: 0.0, lambda g: -1.0)
    return ppo_clip_policy(assign, clip=clip, rows=rows)


def w_reinforce(*, weight: ArrayLike = 0.1, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A_S = weight, A_F = -1: masses weight p, q; f = (1 + weight) p.

    Args:
      weight: of the successes, >= 0.
      clip: distance of both bounds of the ratio from 1.

    Source: code TianHongZXY/RLVR-Decomposed (PAPER).
    """
    check.number("weight", weight, low=0)
    return ppo_clip_policy(
        adv.assign_by_class(lambda g: weight, lambda g: -1.0), clip=clip
    )
