"""CurveRL: advantages scaled by how rare a solve rate has been of late."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def curve_rl(
    num_samples: int, *, window: int = 10, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """A = w (r - p), w = f(p) / F(p) of the last batches' solve rates (CurveRL).

    The histogram f of the solve rates and its cumulative sum F are state.

    Args:
      num_samples: G, samples per prompt.
      window: batches remembered.
      clip: distance of both bounds of the ratio from 1.

    Source: code zhyzmath/CurveRL (PAPER).
    """
    return ppo_clip_policy(
        adv.center_by_group(),
        adv.scale_by_history(num_samples, window=window),
        clip=clip,
    )
