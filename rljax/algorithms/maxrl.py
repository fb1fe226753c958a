"""Maximum likelihood RL and its neighbours: centred rewards times a function of p.

Most are A = g(p) (r - p) with both masses p q g(p), 0 in groups of equal rewards.
"""

import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def _centred(fn, clip):
    return ppo_clip_policy(adv.center_by_group(), adv.scale_by_rate(fn), clip=clip)


def maxrl(*, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """(r - p) / p: masses q; f = log p, as a series cut after G - 1 terms (MaxRL).

    Args:
      clip: distance of both bounds of the ratio from 1.

    Source: code tajwarfahim/maxrl (PAPER).
    Variants: the authors' code adds 1e-6 to p.
    """
    return _centred(lambda p: 1 / p, clip)


def linear_r(*, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A_S = q / p, A_F = -1: as MaxRL, but an unsolved group keeps A_F = -1.

    Args:
      clip: distance of both bounds of the ratio from 1.

    Source: Linear-R, Heckel et al. (SECONDARY).
    """
    return ppo_clip_policy(
        adv.assign_by_class(lambda g: g.q / g.p, lambda g: -1.0), clip=clip
    )


def sqrt_r(*, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """(r - p) / sqrt p: masses q sqrt p, peak at p = 1/3; f = 2 sqrt p.

    Args:
      clip: distance of both bounds of the ratio from 1.

    Source: Heckel et al. (SECONDARY).
    """
    return _centred(lambda p: 1 / jnp.sqrt(p), clip)


def log_failure(*, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """(r - p) / q: masses p, a focus on easy prompts; f = -log(1 - p).

    Args:
      clip: distance of both bounds of the ratio from 1.

    Source: none, the mirror of MaxRL (DERIVED).
    """
    return _centred(lambda p: 1 / (1 - p), clip)


def log_odds(*, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """(r - p) / (p q): masses 1 in every mixed group; f = log(p / q).

    Args:
      clip: distance of both bounds of the ratio from 1.

    Source: none, the sum of MaxRL and its mirror (DERIVED).
    """
    return _centred(lambda p: 1 / (p * (1 - p)), clip)
