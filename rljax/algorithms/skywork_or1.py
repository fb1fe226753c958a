"""Skywork-OR1: an entropy bonus whose coefficient follows the entropy."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss


def skywork_or1(
    *,
    target: ArrayLike = 0.2,
    step: ArrayLike = 1e-4,
    initial: ArrayLike = 0.0,
    maximum: ArrayLike = 0.005,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> adv.Algorithm:
    """GRPO with a token mean and an entropy bonus that is on below a target.

    The bonus's coefficient changes once per training step: the entropy measured in one
    step sets the coefficient of the next.

    Args:
      target: entropy below which the bonus is on, nats.
      step: change of the coefficient per training step.
      initial: the coefficient's start.
      maximum: the coefficient's upper bound.
      low, high: distances of the clip's bounds from 1; verl's defaults.

    Source: arXiv:2505.22312; code SkyworkAI/Skywork-OR1 verl/trainer/ppo/core_algos.py,
      or1_scripts (PAPER).
    """
    check.number("maximum", maximum, low=0)
    check.ordered(initial=initial, maximum=maximum)
    controller = adv.delayed(
        adv.entropy_controller(target=target, step=step, initial=initial, high=maximum)
    )
    coefficient = adv.controlled(adv.assign_constant, controller, adv.sampled_entropy)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        ),
        entropy=adv.Term(
            advantage=coefficient,
            weighting=adv.token_mean(),
            loss_fn=loss.times_advantage(loss.entropy_bonus()),
        ),
    )
