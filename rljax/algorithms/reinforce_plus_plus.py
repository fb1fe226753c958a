"""REINFORCE++: returns whitened over the global batch instead of a group or critic."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def reinforce_plus_plus(
    *, discount: ArrayLike = 1.0, ddof: int = 0, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """A_t = (G_t - mean) / std over all tokens of the batch, G_t the return to go.

    Successes and failures balance only if p is the batch mean: samples of easy prompts
    are pushed up, those of hard prompts down. The paper's KL penalty is part of the
    reward; add it as a transform before `adv.assign_return_to_go`.

    Args:
      discount: per token, a fraction.
      ddof: 0 for OpenRLHF, 1 for verl.
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2501.03262; code OpenRLHF (PAPER).
    """
    return ppo_clip_policy(
        adv.assign_return_to_go(discount), adv.whiten_by_batch(ddof=ddof), clip=clip
    )


def reinforce_plus_plus_baseline(
    *, ddof: int = 0, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """A = (r - mean of the group) / std over the batch s': both masses p q / s'.

    Args:
      ddof: 0 for OpenRLHF, 1 for verl.
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2501.03262; code OpenRLHF (PAPER).
    """
    return ppo_clip_policy(
        adv.center_by_group(), adv.whiten_by_batch(ddof=ddof), clip=clip
    )
