"""FADE: Focal Advantage with Dynamic Entropy."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def fade(
    *,
    entropy_target: ArrayLike | None = None,
    entropy_target_frac: ArrayLike = 0.5,
    ema_rate: ArrayLike = 0.02,
    p_init: ArrayLike = 0.5,
    alpha_max: ArrayLike = 3.0,
    delta_min: ArrayLike = 0.3,
    clip: ArrayLike = 0.2,
) -> adv.Algorithm:
    """A_S = q^alpha, A_F = -p q^(alpha-1) / delta; alpha, delta follow the run (FADE).

    The masses are p q^alpha and p q^alpha / delta. Early in a run they focus on hard
    prompts and are balanced; later on easier prompts and on failures. The loss is PPO's
    clipped ratio, mean over tokens.

    Args:
      entropy_target: H*, nats; None is `entropy_target_frac` of the initial entropy.
      entropy_target_frac: fraction; 0.5 is what the paper found best.
      ema_rate: weight of the new value in both running averages, a fraction.
      p_init: solve rate before the first batch, a fraction.
      alpha_max: largest alpha, the strongest focus on hard prompts.
      delta_min: smallest delta, the strongest weight of failures.
      clip: distance of both bounds of the ratio from 1 (not found in the paper).

    Source: arXiv:2607.01490 v1 (formula SECONDARY; convention of the averages, scope of
      the mean reward and unit of the entropy RECONSTRUCTED).
    """
    controller = adv.fade_controller(
        entropy_target=entropy_target,
        entropy_target_frac=entropy_target_frac,
        ema_rate=ema_rate,
        p_init=p_init,
        alpha_max=alpha_max,
        delta_min=delta_min,
    )
    return ppo_clip_policy(adv.scale_by_fade(controller), clip=clip)
