"""A detached token ratio instead of PPO's clip: CISPO, MinPRO."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def cispo(*, cap: ArrayLike = 5.0) -> adv.Algorithm:
    """REINFORCE with a capped, detached ratio: no token loses its gradient (CISPO).

    Args:
      cap: upper bound of the ratio itself (TRL's convention, ScaleRL's value). verl's
        number is cap - 1.

    Source: MiniMax-M1, arXiv:2506.13585 (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.cispo(cap=cap),
        )
    )


def minpro(*, low: ArrayLike = 1.0, high: ArrayLike = 0.28) -> adv.Algorithm:
    """CISPO with the ratio times the smallest ratio of its prefix (MinPRO).

    Args:
      low: distance of the floor from 1; 1 is no floor.
      high: distance of the cap from 1.

    Source: arXiv:2601.22718 (objective SECONDARY; bounds RECONSTRUCTED).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.minpro(low, high),
        )
    )
