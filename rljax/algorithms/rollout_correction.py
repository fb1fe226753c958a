"""Corrections for a sampler that is not quite the policy: TIS, IcePop and relatives.

All on GRPO's advantage with PPO's clip and a token mean. They need `old` measured by
the learner's policy: `actor(..., measure_old=policy.measure)`. mu is the distribution
that the tokens were really drawn from.
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
      before: rejections that renormalise; None is none.
      after: importance weights, and rejections that do not renormalise; None is none.
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
      cap: of a token's ratio, > 0.
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
    """Tokens weigh pi_old / mu inside [floor, cap], and nothing outside (IcePop).

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
    """Rows weigh the product of their ratios up to a cap, and nothing beyond it.

    Args:
      cap: of a row's product, > 0.
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
    """Rows whose geometric mean ratio lies outside [floor, cap] leave the mean.

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
    """Rows outside [floor, cap] weigh nothing, tokens of the others their raw ratio.

    The divisor does not change and ratios are not truncated.

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
      cap: of a token's ratio, > 0.

    Source: verl's bypass mode with REINFORCE (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(adv.normalise_by_group(), adv.log_mismatch()),
            weighting=adv.token_mean(),
            loss_fn=loss.against_behaviour(loss.cispo(cap=cap)),
        )
    )
