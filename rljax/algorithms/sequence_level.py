"""One ratio per sequence: GSPO, GSPO-token, GMPO."""

from rljax import advantage as adv
from rljax import loss
from rljax.algorithms.clip_higher import group_normalised
from rljax.loss.sequence_ratio import mean_of_clipped


def gspo(*, low: float = 3e-4, high: float = 4e-4) -> adv.Algorithm:
    """PPO's clip of the geometric mean ratio, mean over sequences (GSPO).

    Source: arXiv:2507.18071 (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.gspo(low, high),
        )
    )


def gspo_token(*, low: float = 3e-4, high: float = 4e-4) -> adv.Algorithm:
    """GSPO in its token form, which allows advantages per token; verl's "gspo".

    Source: arXiv:2507.18071 (SECONDARY).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.gspo_token(low, high),
        )
    )


def gmpo(*, low: float = 0.4, high: float = 0.4) -> adv.Algorithm:
    """Geometric mean of token ratios clipped in log space (GMPO).

    Args:
      low, high: bounds of log rho, nats.

    Source: arXiv:2507.20673; code callsys/GMPO train_zero_math_gmpo.py (PAPER).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.gmpo(mean_of_clipped(low, high)),
        )
    )
