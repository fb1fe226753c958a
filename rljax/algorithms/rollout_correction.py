"""Corrections for a sampler that differs from the policy: TIS, IcePop and relatives.

Most have GRPO's advantage, PPO's clip and a token mean. The learner's policy must
measure `old`: `actor(..., measure_old=policy.measure)`. mu is the distribution that the
tokens were really drawn from.
"""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss
from rljax.advantage import importance


def corrected(
    *,
    before: adv.AdvantageTransform | None = None,
    after: adv.AdvantageTransform | None = None,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> adv.Algorithm:
    """GRPO with corrections before and after its token mean; logs the mismatch.

    Args:
      before: rejections, after which the mean renormalises; None rejects nothing.
      after: importance weights, or rejections that keep the divisor; None changes
        nothing.
      low, high: distances of the clip's bounds from 1.

    Source: none, the common form of the recipes below (TEXTBOOK).
    """
    if before is not None:
        check.kind("before", before, adv.AdvantageTransform, "reject(geometric)")
    if after is not None:
        check.kind("after", after, adv.AdvantageTransform, "weigh_by_importance()")
    before = adv.chain() if before is None else before
    after = adv.chain() if after is None else after
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(adv.normalise_by_group(), adv.log_mismatch()),
            weighting=adv.chain(before, adv.token_mean(), after),
            loss_fn=loss.ppo_clip(low, high),
        )
    )


def tis(
    *, cap: ArrayLike = 2.0, low: ArrayLike = 0.2, high: ArrayLike = 0.2
) -> adv.Algorithm:
    """Truncated importance sampling: tokens weigh min(pi_old / mu, cap) (TIS).

    Args:
      cap: upper bound of a token's ratio, > 0.
      low, high: distances of the clip's bounds from 1.

    Source: fengyao.notion.site/off-policy-rl, as verl and TRL quote it (SECONDARY).
    """
    after = adv.weigh_by_importance(importance.truncate(cap))
    return corrected(after=after, low=low, high=high)


def icepop(
    *,
    floor: ArrayLike = 0.5,
    cap: ArrayLike = 5.0,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> adv.Algorithm:
    """Tokens weigh pi_old / mu if it lies in [floor, cap], else 0 (IcePop).

    Args:
      floor, cap: bounds of a token's ratio.
      low, high: distances of the clip's bounds from 1.

    Source: verl, OpenRLHF (SECONDARY).
    """
    check.number("floor", floor, low=0)
    check.number("cap", cap, above=0, high=float("inf"))
    check.ordered(floor=floor, cap=cap)
    after = adv.weigh_by_importance(importance.mask_outside(floor, cap))
    return corrected(after=after, low=low, high=high)


def sequence_mask(
    *, cap: ArrayLike = 3.0, low: ArrayLike = 0.2, high: ArrayLike = 0.2
) -> adv.Algorithm:
    """Rows weigh the product of their tokens' ratios if it is at most cap, else 0.

    Args:
      cap: upper bound of a row's product, > 0.
      low, high: distances of the clip's bounds from 1.

    Source: TRL's default, `sequence_mask` (SECONDARY).
    """
    check.number("cap", cap, above=0, high=float("inf"))
    after = adv.weigh_by_importance(
        importance.mask_outside(0.0, cap), importance.per_sequence
    )
    return corrected(after=after, low=low, high=high)


def geometric_rejection(
    *,
    floor: ArrayLike = 0.999,
    cap: ArrayLike = 1.001,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> adv.Algorithm:
    """Rows whose geometric mean ratio lies outside [floor, cap] are left out.

    The token mean runs over the remaining rows.

    Args:
      floor, cap: bounds of a row's geometric mean ratio.
      low, high: distances of the clip's bounds from 1.

    Source: verl's rejection sampling `geometric` (SECONDARY).
    """
    check.number("floor", floor, low=0)
    check.number("cap", cap, above=0, high=float("inf"))
    check.ordered(floor=floor, cap=cap)
    before = adv.reject(importance.geometric, low=floor, high=cap)
    return corrected(before=before, low=low, high=high)


def sequence_mask_tis(
    *,
    floor: ArrayLike = 0.999,
    cap: ArrayLike = 1.001,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> adv.Algorithm:
    """As `geometric_rejection`; tokens of the remaining rows weigh pi_old / mu.

    Unlike there the divisor counts all rows. The ratios are not truncated.

    Args:
      floor, cap: bounds of a row's geometric mean ratio.
      low, high: distances of the clip's bounds from 1.

    Source: OpenRLHF `seq-mask-tis` as released (SECONDARY).
    """
    check.number("floor", floor, low=0)
    check.number("cap", cap, above=0, high=float("inf"))
    check.ordered(floor=floor, cap=cap)
    after = adv.chain(
        adv.reject(importance.geometric, low=floor, high=cap),
        adv.weigh_by_importance(importance.untouched),
    )
    return corrected(after=after, low=low, high=high)


def truncated_reinforce(*, cap: ArrayLike = 2.0) -> adv.Algorithm:
    """-sg[min(pi / mu, cap)] A log pi: one ratio for staleness and mismatch.

    Args:
      cap: upper bound of a token's ratio, > 0.

    Source: verl's bypass mode with REINFORCE (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(adv.normalise_by_group(), adv.log_mismatch()),
            weighting=adv.token_mean(),
            loss_fn=loss.against_behaviour(loss.cispo(cap=cap)),
        )
    )
