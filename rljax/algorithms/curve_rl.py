"""CurveRL: advantages scaled by a histogram of recent solve rates."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def curve_rl(
    num_samples: int, *, window: int = 10, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """A = w (r - p), w = f(p) / F(p) of the last batches' solve rates (CurveRL).

    f is the histogram of past solve rates, F its cumulative sum; both are state.

    Args:
      num_samples: G, samples per prompt.
      window: number of past batches in the histogram.
      clip: distance of both bounds of the ratio from 1.

    Source: code zhyzmath/CurveRL (PAPER).
    """
    return ppo_clip_policy(
        adv.center_by_group(),
        adv.scale_by_history(num_samples, window=window),
        clip=clip,
    )
