"""Actor and critic: PPO with GAE, Turn-PPO.

Both need a policy with a value head, `rljax.policy.with_value_head`, and its `measure`
as the actor's `measure_old`.
"""

from rljax import advantage as adv
from rljax import check, loss
from rljax.advantage.algebra import LossFn


def _actor_critic(
    policy_loss: LossFn,
    mean: adv.AdvantageTransform,
    *,
    gamma,
    lam,
    value_clip,
    value_coefficient,
) -> adv.Algorithm:
    check.number("value_clip", value_clip, above=0, high=float("inf"))
    check.number("value_coefficient", value_coefficient, low=0)
    return adv.algorithm(
        policy=adv.Term(
            policy_loss,
            weighting=mean,
            advantage=adv.chain(
                adv.gae_advantage(gamma, lam), adv.whiten_by_batch(ddof=1)
            ),
        ),
        value=adv.Term(
            loss.value_loss(value_clip),
            weighting=adv.chain(adv.token_mean(), adv.scale_weight(value_coefficient)),
            advantage=adv.value_target(gamma, lam),
        ),
    )


def ppo(
    *,
    low: float = 0.2,
    high: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_clip: float = 0.2,
    value_coefficient: float = 0.1,
) -> adv.Algorithm:
    """PPO with whitened generalised advantages and a clipped value loss.

    Args:
      low, high: distances of the ratio's bounds from 1.
      gamma, lam: of GAE; verl has lam 1, TRL 0.95.
      value_clip: trust region of the value, reward units; verl 0.5.
      value_coefficient: weight of the value loss; TRL 0.1, CleanRL 0.5.

    Source: arXiv:1707.06347, eqs. (7), (9); defaults TRL's (SECONDARY).
    """
    return _actor_critic(
        loss.clipped_ratio(low, high),
        adv.token_mean(),
        gamma=gamma,
        lam=lam,
        value_clip=value_clip,
        value_coefficient=value_coefficient,
    )


def turn_ppo(
    *,
    low: float = 0.2,
    high: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    value_clip: float = 0.2,
    value_coefficient: float = 0.1,
) -> adv.Algorithm:
    """PPO with one ratio per turn, mean over sequences of token means (Turn-PPO).

    Source: arXiv:2511.20718 (SECONDARY); GAE's numbers and whitening are PPO's.
    """
    return _actor_critic(
        loss.turn_ppo(low, high),
        adv.sequence_mean(),
        gamma=gamma,
        lam=lam,
        value_clip=value_clip,
        value_coefficient=value_coefficient,
    )
