"""DASD: self-distillation whose direction depends on each token's entropy."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def dasd(
    *,
    beta: ArrayLike = 0.1,
    entropy_quantile: ArrayLike = 0.8,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.28,
) -> adv.Algorithm:
    """Self-distillation: towards the teacher at low entropy, away at high (DASD).

    Needs a teacher: `actor(..., teacher=rljax.policy.privileged_teacher(policy))`.

    Args:
      beta: strength; 0.1 is a placeholder, the paper's value is unknown.
      entropy_quantile: fraction of a row's tokens that move towards the teacher.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2605.22263 (SECONDARY; beta, clip and normalisers RECONSTRUCTED).
    """
    follow = adv.follow_teacher_by_entropy(beta=beta, entropy_quantile=entropy_quantile)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(adv.normalise_by_group(), follow),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        )
    )
