"""Advantages modulated by confidence: ACE, DASD."""

from rljax import advantage as adv
from rljax import loss
from rljax.algorithms.clip_higher import group_normalised


def ace(*, alpha: float = 1.0, low: float = 0.2, high: float = 0.28) -> adv.Algorithm:
    """Wrong samples are punished more the surer the policy has become of them (ACE).

    Needs a reference. Composed with DAPO's clip and mean.

    Source: arXiv:2602.21420 (c PAPER; multiplier and alpha RECONSTRUCTED).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(group_normalised(), adv.punish_confident_errors(alpha)),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        )
    )


def dasd(
    *,
    beta: float = 0.1,
    entropy_quantile: float = 0.8,
    low: float = 0.2,
    high: float = 0.28,
) -> adv.Algorithm:
    """Self-distillation towards the teacher where certain, away where not (DASD).

    Needs a teacher: `actor(..., teacher=rljax.policy.privileged_teacher(policy))`.

    Source: arXiv:2605.22263 (SECONDARY; beta, clip and normalisers RECONSTRUCTED).
    """
    follow = adv.follow_teacher_by_entropy(beta=beta, entropy_quantile=entropy_quantile)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(group_normalised(), follow),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        )
    )
