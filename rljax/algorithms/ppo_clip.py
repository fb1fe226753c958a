"""PPO's clipped ratio, mean over tokens: the loss that most recipes here share."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss


def ppo_clip_policy(
    *steps: adv.AdvantageTransform,
    clip: ArrayLike = 0.2,
    rows: adv.AdvantageTransform | None = None,
) -> adv.Algorithm:
    """One policy term: -min(rho A, clip(rho, 1 - clip, 1 + clip) A), mean over tokens.

    Args:
      *steps: transforms of the advantage chain; the first one gets the reward.
      clip: distance of both bounds of the ratio from 1.
      rows: a filter before the mean, such as `adv.keep_correct()`; None keeps all.

    Source: arXiv:1707.06347, eq. (7) (TEXTBOOK).
    """
    check.number("clip", clip, low=0, high=1)
    if rows is not None:
        check.kind("rows", rows, adv.AdvantageTransform, "keep_correct()")
    filters = () if rows is None else (rows,)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(*steps),
            weighting=adv.chain(*filters, adv.token_mean()),
            loss_fn=loss.ppo_clip(clip, clip),
        )
    )
