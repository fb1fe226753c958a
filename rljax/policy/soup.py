"""Averages of parameter trees: soups, interpolation, initial actors, references."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check


def soup(trees: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """sum_i w_i theta_i, leaf by leaf, summed in float32, in the first tree's dtypes.

    It composes: BAI's initial policy is
    `soup([base, soup([instruct, distilled])], [alpha, 1 - alpha])`, SALSA's reference
    `soup([first, second])`.

    Args:
      trees: parameters with the same structure, at least one.
      weights: one number per tree, with sum 1; negative ones extrapolate. None: equal
        weights.

    Raises:
      ValueError: if there is no tree, or the weights have another number or sum.

    Source: SALSA, arXiv:2411.01798 (PAPER, abstract; a = .5 RECONSTRUCTED); BAI,
      arXiv:2509.00309 (SECONDARY): alpha = .1 scored best, .5 to .6 trained healthiest.
    """
    if not trees:
        raise ValueError(
            "trees must hold at least one tree, got none; pass parameters."
        )
    num = len(trees)
    weights = [1 / num] * num if weights is None else list(weights)
    for weight in weights:
        check.number("weights", weight)
    if len(weights) != num or not math.isclose(sum(weights), 1, abs_tol=1e-6):
        raise ValueError(
            f"weights must be {num} numbers, one per tree, with sum 1, got {weights};"
            " divide them by their sum."
        )

    def mix(*leaves):
        total = jnp.zeros(leaves[0].shape, jnp.float32)
        for weight, leaf in zip(weights, leaves, strict=True):
            total += weight * leaf.astype(jnp.float32)
        return total.astype(leaves[0].dtype)

    return jax.tree.map(mix, *trees)
