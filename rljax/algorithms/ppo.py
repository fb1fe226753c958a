"""Actor and critic: PPO with GAE, Turn-PPO.

Both need a policy with a value head, `rljax.policy.with_value_head`, and its `measure`
as the actor's `measure_old`.
"""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss
from rljax.types import LossFn


def _actor_critic(
    policy_loss: LossFn,
    mean: adv.AdvantageTransform,
    *,
    gamma: ArrayLike,
    lam: ArrayLike,
    value_clip: ArrayLike,
    value_coefficient: ArrayLike,
) -> adv.Algorithm:
    check.number("value_clip", value_clip, above=0, high=float("inf"))
    check.number("value_coefficient", value_coefficient, low=0)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(
                adv.assign_gae(gamma, lam), adv.whiten_by_batch(ddof=1)
            ),
            weighting=mean,
            loss_fn=policy_loss,
        ),
        value=adv.Term(
            advantage=adv.assign_value_target(gamma, lam),
            weighting=adv.chain(adv.token_mean(), adv.scale_weight(value_coefficient)),
            loss_fn=loss.value_loss(value_clip),
        ),
    )


def ppo(
    *,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
    gamma: ArrayLike = 1.0,
    lam: ArrayLike = 0.95,
    value_clip: ArrayLike = 0.2,
    value_coefficient: ArrayLike = 0.1,
) -> adv.Algorithm:
    """PPO with whitened generalised advantages and a clipped value loss.

    Args:
      low, high: distances of the ratio's bounds from 1.
      gamma: discount per policy token, a fraction.
      lam: of GAE, a fraction; verl has 1, TRL 0.95.
      value_clip: largest change of the value per batch, reward units; verl has 0.5.
      value_coefficient: weight of the value loss; TRL has 0.1, CleanRL 0.5.

    Source: arXiv:1707.06347, eqs. (7), (9); defaults TRL's (SECONDARY).
    """
    return _actor_critic(
        loss.ppo_clip(low, high),
        adv.token_mean(),
        gamma=gamma,
        lam=lam,
        value_clip=value_clip,
        value_coefficient=value_coefficient,
    )


def turn_ppo(
    *,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
    gamma: ArrayLike = 1.0,
    lam: ArrayLike = 0.95,
    value_clip: ArrayLike = 0.2,
    value_coefficient: ArrayLike = 0.1,
) -> adv.Algorithm:
    """PPO with one ratio per turn, mean over sequences of token means (Turn-PPO).

    GAE, whitening and value loss are those of `ppo`.

    Args:
      low, high: distances of the ratio's bounds from 1.
      gamma: discount per policy token, a fraction.
      lam: of GAE, a fraction.
      value_clip: largest change of the value per batch, reward units.
      value_coefficient: weight of the value loss.

    Source: arXiv:2511.20718 (SECONDARY).
    """
    return _actor_critic(
        loss.turn_ppo(low, high),
        adv.sequence_mean(),
        gamma=gamma,
        lam=lam,
        value_clip=value_clip,
        value_coefficient=value_coefficient,
    )
