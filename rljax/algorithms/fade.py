"""FADE: Focal Advantage with Dynamic Entropy (arXiv:2607.01490).

The formula is as transcribed by a third-party reading of arXiv v1 (SECONDARY); the EMA
convention, the scope of the mean reward and the unit of entropy are our reading.
"""

from rljax import advantage as adv
from rljax.algorithms import clipped


def fade(
    *,
    entropy_target: float | None = None,
    entropy_target_frac: float = 0.5,
    ema_rate: float = 0.02,
    p_init: float = 0.5,
    alpha_max: float = 3.0,
    delta_min: float = 0.3,
    clip: float = 0.2,
) -> adv.Algorithm:
    """A_S = q^alpha, A_F = -p q^(alpha-1) / delta, alpha and delta following the run.

    Masses p q^alpha and p q^alpha / delta: hard prompts and balance early; easier ones
    and failures late. PPO's clipped ratio, mean over tokens.

    Args:
      entropy_target: H*, nats; None is `entropy_target_frac` of the initial entropy.
      entropy_target_frac: fraction; 0.5 is what the paper found best.
      ema_rate: weight of the new value in both running averages.
      p_init: solve rate before the first batch, a fraction.
      alpha_max, delta_min: the hardest focus and the strongest tilt to failures.
      clip: distance of both bounds of the ratio from 1 (not found in the paper).
    """
    return clipped.ppo_clip_policy(
        adv.scale_by_fade(
            entropy_target=entropy_target,
            entropy_target_frac=entropy_target_frac,
            ema_rate=ema_rate,
            p_init=p_init,
            alpha_max=alpha_max,
            delta_min=delta_min,
        ),
        clip=clip,
    )
