"""SAPO: a sigmoid gate on the token ratio instead of PPO's clip."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def sapo(*, positive: ArrayLike = 1.0, negative: ArrayLike = 1.05) -> adv.Algorithm:
    """A sigmoid gate on the ratio, mean over sequences (SAPO).

    Args:
      positive, negative: the gate's steepness for A > 0 and for the rest, > 0.

    Source: arXiv:2511.20347 (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.sapo(positive, negative),
        )
    )
