"""GFT: group fine-tuning over demonstrations, teacher answers and own rollouts.

    A_k = (R_k - mean_j R_j) / (std_j R_j + epsilon),    std with ddof 1
    L = tokmean_{k,t} [-A_k sg[C(p_kt)] log p_kt],       C = 1 if p > tau else p

Mixed groups come from `mix.joined(sampler(...), mix.stored())`; every member is verified
alike, and nothing in the loss knows where a row came from: no ratio, no clip, no old
statistics, no KL.

Source: arXiv:2604.14258; code ZJU-OmniAI/GFT core_algos.py (PAPER: code).
Variants: the code averages the token means of micro-batches; here the mean runs over the
  tokens of the minibatch, so that micro-batches do not matter. Threshold 0.1 and 0.5 in
  the launchers, best near 0.7 in the paper's sweep (SECONDARY).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax.advantage import (
    Algorithm,
    Term,
    algorithm,
    center_by_group,
    except_single,
    scale_by_group_std,
    token_mean,
)
from rljax.loss import reinforce, supervised


def gft(
    *,
    tau: jax.typing.ArrayLike = 0.5,
    epsilon: float = 1e-6,
    exceeds: Callable[[jax.Array, jax.Array], jax.Array] = jnp.greater,
) -> Algorithm:
    """Group Advantage Learning with Dynamic Coefficient Rectification.

    Args:
      tau: threshold of the rectification, a probability.
      epsilon: added to the group's standard deviation.
      exceeds: `jnp.greater` (the code) or `jnp.greater_equal` (the paper's notes).
    """
    return algorithm(
        policy=Term(
            supervised.rectified(reinforce(), supervised.threshold(tau, exceeds)),
            advantage=except_single(
                center_by_group(), scale_by_group_std(ddof=1, epsilon=epsilon)
            ),
            weighting=token_mean(),
        )
    )
