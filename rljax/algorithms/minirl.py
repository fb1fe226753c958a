"""MiniRL: REINFORCE with a ratio to the sampler; PPO's clip acts as a mask."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def minirl(
    *, low: ArrayLike = 0.2, high: ArrayLike = 0.27, cap: ArrayLike = 5.0
) -> adv.Algorithm:
    """-M sg[min(pi / mu, cap)] A log pi, M = 0 where PPO clips pi / pi_old (MiniRL).

    mu is the sampler's distribution. A is centred and not scaled; tokens are summed and
    rows averaged. If the sampler differs from the policy, the learner's policy must
    measure `old`: `actor(..., measure_old=policy.measure)`. With several optimiser
    steps per rollout batch the paper adds routing replay for mixtures of experts:
    `rljax.model.replay`.

    Args:
      low, high: distances of the clip's bounds from 1.
      cap: upper bound of a token's ratio pi / mu, > 0.

    Source: Stabilizing RL with LLMs, arXiv:2512.01374, eq. (7) (SECONDARY).
    """
    sampled = loss.against_behaviour(loss.cispo(cap=cap))
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(adv.center_by_group(), adv.log_mismatch()),
            weighting=adv.constant_length(1),
            loss_fn=loss.unless_clipped(sampled, low, high),
        )
    )
