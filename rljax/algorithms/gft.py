"""GFT: group fine-tuning over demonstrations, teacher answers and own rollouts.

    A_k = (R_k - mean_j R_j) / (std_j R_j + epsilon),    std with ddof 1
    L = tokmean_{k,t} [-A_k sg[C(p_kt)] log p_kt],       C = 1 if p > tau else p

Mixed groups come from `rollout.mixed`: `side_by_side(sampler(...), stored_answers())`.
Every row is verified in the same way, and the loss does not depend on where a row came
from: it has no ratio, no clip, no KL, and reads no old statistics.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def gft(
    *,
    tau: ArrayLike = 0.5,
    epsilon: ArrayLike = 1e-6,
    exceeds: Callable[[jax.Array, jax.Array], jax.Array] = jnp.greater,
) -> adv.Algorithm:
    """Group Advantage Learning with Dynamic Coefficient Rectification (GFT).

    Args:
      tau: threshold of the rectification, a probability. The authors' scripts have 0.1
        and 0.5; best near 0.7 in the paper's sweep.
      epsilon: added to the group's standard deviation, reward units.
      exceeds: (p, tau) -> bool: `jnp.greater` (the code) or `jnp.greater_equal` (the
        paper's notes).

    Source: arXiv:2604.14258; code ZJU-OmniAI/GFT core_algos.py (PAPER; sweep
      SECONDARY).
    Variants: the code averages the token means of microbatches. Here the mean runs over
      the tokens of the minibatch, so that microbatches do not matter.
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.skip_groups_of_one(
                adv.normalise_by_group(ddof=1, epsilon=epsilon)
            ),
            weighting=adv.token_mean(),
            loss_fn=loss.reweighted(
                loss.reinforce(), loss.supervised.threshold(tau, exceeds)
            ),
        )
    )
