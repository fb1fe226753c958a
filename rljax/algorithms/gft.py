"""GFT: group fine-tuning over demonstrations, teacher answers and own rollouts.

    A_k = (R_k - mean_j R_j) / (std_j R_j + epsilon),    std with ddof 1
    L = tokmean_{k,t} [-A_k sg[C(p_kt)] log p_kt],       C = 1 if p > tau else p

Mixed groups come from `rollout.mixed`: `side_by_side(sampler(...), stored_answers())`.
Every member is verified alike, and nothing in the loss knows where a row came
from: no ratio, no clip, no KL, no old statistics.

Source: arXiv:2604.14258; code ZJU-OmniAI/GFT core_algos.py (PAPER: code).
Variants: the code averages the token means of micro-batches; here the mean runs over
  the tokens of the minibatch, so that micro-batches do not matter. The launchers have
  tau 0.1 and 0.5, best near 0.7 in the paper's sweep (SECONDARY).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import advantage as adv
from rljax.advantage import mixing
from rljax.loss import supervised, surrogate


def gft(
    *,
    tau: jax.typing.ArrayLike = 0.5,
    epsilon: float = 1e-6,
    exceeds: Callable[[jax.Array, jax.Array], jax.Array] = jnp.greater,
) -> adv.Algorithm:
    """Group Advantage Learning with Dynamic Coefficient Rectification.

    Args:
      tau: threshold of the rectification, a probability.
      epsilon: added to the group's standard deviation.
      exceeds: `jnp.greater` (the code) or `jnp.greater_equal` (the paper's notes).
    """
    return adv.algorithm(
        policy=adv.Term(
            supervised.rectified(
                surrogate.reinforce(), supervised.threshold(tau, exceeds)
            ),
            advantage=mixing.except_single(
                adv.center_by_group(), adv.scale_by_group_std(ddof=1, epsilon=epsilon)
            ),
            weighting=adv.token_mean(),
        )
    )
