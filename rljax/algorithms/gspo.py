"""GSPO: one ratio per sequence, the geometric mean of its tokens' ratios."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def gspo(*, low: ArrayLike = 3e-4, high: ArrayLike = 4e-4) -> adv.Algorithm:
    """PPO's clip of the geometric mean ratio, mean over sequences (GSPO).

    Args:
      low, high: distances of the ratio's bounds from 1.

    Source: arXiv:2507.18071 (SECONDARY).
    """
    return adv.algorithm(policy=_policy(loss.gspo(low, high)))


def gspo_token(*, low: ArrayLike = 3e-4, high: ArrayLike = 4e-4) -> adv.Algorithm:
    """GSPO's token form, which allows an advantage per token (verl's "gspo").

    Args:
      low, high: distances of the ratio's bounds from 1.

    Source: arXiv:2507.18071 (SECONDARY).
    """
    return adv.algorithm(policy=_policy(loss.gspo_token(low, high)))


def _policy(loss_fn) -> adv.Term:
    return adv.Term(
        advantage=adv.normalise_by_group(),
        weighting=adv.sequence_mean(),
        loss_fn=loss_fn,
    )
