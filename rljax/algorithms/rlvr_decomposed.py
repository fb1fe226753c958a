"""Positive and negative samples apart: PSR, NSR and W-REINFORCE.

Source: TianHongZXY/RLVR-Decomposed (PAPER: authors' code).
"""

from rljax import advantage as adv
from rljax import check
from rljax.algorithms import clipped


def psr(
    *, clip: float = 0.2, rows: adv.AdvantageTransform | None = None
) -> adv.Algorithm:
    """A_S = 1, A_F = 0: positive sample reinforcement; masses p, 0; f = p.

    The authors drop failures before the token mean, which rescales the batch: `rows` is
    `adv.keep_correct()` by default. With `adv.chain()` the mean runs over all rows.
    """
    rows = adv.keep_correct() if rows is None else rows
    assign = adv.assign_by_class(lambda g: 1.0, lambda g: 0.0)
    return clipped.ppo_clip_policy(assign, clip=clip, rows=rows)


def nsr(
    *, clip: float = 0.2, rows: adv.AdvantageTransform | None = None
) -> adv.Algorithm:
    """A_S = 0, A_F = -1: negative sample reinforcement; masses 0, q; f = p.

    The authors drop successes before the token mean: `rows` is `adv.keep_incorrect()`
    by default. With `adv.chain()` the mean runs over all rows.
    """
    rows = adv.keep_incorrect() if rows is None else rows
    assign = adv.assign_by_class(lambda g: 0.0, lambda g: -1.0)
    return clipped.ppo_clip_policy(assign, clip=clip, rows=rows)


def w_reinforce(*, weight: float = 0.1, clip: float = 0.2) -> adv.Algorithm:
    """A_S = weight, A_F = -1: masses weight p, q; f = (1 + weight) p."""
    check.number("weight", weight, low=0)
    return clipped.ppo_clip_policy(
        adv.assign_by_class(lambda g: weight, lambda g: -1.0), clip=clip
    )
