"""GMPO: the geometric mean of clipped token ratios."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def gmpo(*, low: ArrayLike = 0.4, high: ArrayLike = 0.4) -> adv.Algorithm:
    """Geometric mean of token ratios clipped in log space (GMPO).

    Args:
      low, high: bounds of log rho, nats.

    Source: arXiv:2507.20673; code callsys/GMPO train_zero_math_gmpo.py (PAPER).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.gmpo(loss.sequence_ratio.mean_of_clipped(low, high)),
        )
    )
