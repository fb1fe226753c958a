"""An entropy bonus whose coefficient follows the entropy: Skywork-OR1."""

from rljax import advantage as adv
from rljax import check, loss
from rljax.algorithms.clip_higher import group_normalised


def skywork_or1(
    *,
    target: float = 0.2,
    step: float = 1e-4,
    initial: float = 0.0,
    maximum: float = 0.005,
    low: float = 0.2,
    high: float = 0.2,
) -> adv.Algorithm:
    """GRPO with a token mean and an entropy bonus that is on below a target.

    The coefficient moves once per training step, by what that step measured, and serves
    the next one: it is the advantage of the bonus's term.

    Args:
      target: nats.
      step, initial, maximum: of the coefficient.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2505.22312; code SkyworkAI/Skywork-OR1 verl/trainer/ppo/core_algos.py,
      or1_scripts (controller PAPER; the clip's numbers are verl's defaults).
    """
    check.number("maximum", maximum, low=0)
    check.ordered(initial=initial, maximum=maximum)
    controller = adv.delayed(
        adv.entropy_controller(target=target, step=step, initial=initial, high=maximum)
    )
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        ),
        entropy=adv.Term(
            advantage=adv.controlled(
                adv.assign_constant, controller, adv.sampled_entropy
            ),
            weighting=adv.token_mean(),
            loss_fn=loss.times_advantage(loss.entropy_bonus()),
        ),
    )
