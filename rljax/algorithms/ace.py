"""ACE: confident errors are punished more."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def ace(
    *, alpha: ArrayLike = 1.0, low: ArrayLike = 0.2, high: ArrayLike = 0.28
) -> adv.Algorithm:
    """Wrong samples are punished more if pi_old / pi_ref is high (ACE).

    Composed with DAPO's clip and token mean. Needs reference parameters.

    Args:
      alpha: strength of the punishment, >= 0; 1 is a placeholder.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2602.21420 (confidence PAPER; multiplier and alpha RECONSTRUCTED).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(
                adv.normalise_by_group(), adv.punish_confident_errors(alpha)
            ),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        )
    )
