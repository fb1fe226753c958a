"""STAPO: clip-higher GRPO without the spurious tokens."""

from collections.abc import Callable

import jax
from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def stapo(
    *,
    max_prob: ArrayLike = 0.002,
    entropy_quantile: ArrayLike = 0.75,
    population_fn: Callable[
        [jax.Array, jax.Array], jax.Array
    ] = adv.token_filter.low_probability,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.28,
) -> adv.Algorithm:
    """Drops improbable rewarded tokens of low entropy; mean over the others (STAPO).

    Args:
      max_prob: probability below which a token is rare.
      entropy_quantile: rare tokens with an entropy below this quantile are dropped.
      population_fn: the tokens over which the quantile runs; see `silence_spurious`.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2602.15620 v4 (PAPER; v1 SECONDARY).
    Variants: the first versions of the paper have
      `population_fn=adv.token_filter.all_tokens, entropy_quantile=0.8`.
    """
    silence = adv.silence_spurious(
        max_prob=max_prob,
        entropy_quantile=entropy_quantile,
        population_fn=population_fn,
    )
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.chain(silence, adv.token_mean()),
            loss_fn=loss.ppo_clip(low, high),
        )
    )
