"""A detached or softened token ratio instead of PPO's clip: CISPO, SAPO, MinPRO."""

from rljax import advantage as adv
from rljax import loss
from rljax.algorithms.clip_higher import group_normalised


def cispo(*, cap: float = 5.0) -> adv.Algorithm:
    """REINFORCE with a capped, detached ratio: no token loses its gradient (CISPO).

    Args:
      cap: of the ratio itself (TRL's convention; ScaleRL's value). verl's number is
        cap - 1.

    Source: MiniMax-M1, arXiv:2506.13585 (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.token_mean(),
            loss_fn=loss.cispo(cap=cap),
        )
    )


def sapo(*, positive: float = 1.0, negative: float = 1.05) -> adv.Algorithm:
    """A sigmoid gate on the ratio, mean over sequences (SAPO).

    Source: arXiv:2511.20347 (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.sapo(positive, negative),
        )
    )


def minpro(*, low: float = 1.0, high: float = 0.28) -> adv.Algorithm:
    """CISPO with the smallest ratio of the prefix as a factor (MinPRO).

    Source: arXiv:2601.22718 (objective SECONDARY, bounds RECONSTRUCTED).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.token_mean(),
            loss_fn=loss.minpro(low, high),
        )
    )
