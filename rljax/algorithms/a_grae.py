"""A-GRAE: advantages annealed by the batch's mean solve rate."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def a_grae(
    *, k0: ArrayLike = 1.0, ddof: int = 1, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """GRPO's A times h(p, B), successes also times min(1, B / k0) (A-GRAE).

    B is the mean solve rate of the batch, h the factor of `adv.anneal_by_batch_rate`.

    Args:
      k0: batch solve rate from which on successes and failures are balanced; 1 for
        mathematics, else 0.5.
      ddof: of the group's standard deviation; 1 in the authors' code.
      clip: distance of both bounds of the ratio from 1.

    Source: code Yu7-code/A-GRAE (PAPER).
    """
    return ppo_clip_policy(
        adv.normalise_by_group(ddof=ddof, epsilon=0.0),
        adv.anneal_by_batch_rate(k0),
        clip=clip,
    )
