"""Reductions: turn token weights into shares of a mean, so that the loss is a sum.

A reduction runs over the minibatch of one optimiser step: all rows of all prompts. Each
term's weighting contains exactly one. Its divisor counts what the filters before it
kept; transforms after it do not change the divisor.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Rollout


def _reduction(name: str, share: Callable[[jax.Array, Rollout], jax.Array]):
    def apply(credit, rollout):
        if credit.reduced:
            raise ValueError(
                f"{name} needs weights that no reduction has changed, got reduced ones;"
                " a term takes exactly one reduction: remove one from its weighting."
            )
        return credit.replace(weight=share(credit.weight, rollout), reduced=True)

    return stateless(apply)


def token_mean() -> AdvantageTransform:
    """Mean over all tokens of the minibatch: w / sum(w) (DAPO, arXiv:2503.14476)."""
    return _reduction("token_mean()", lambda w, _: numerics.safe_divide(w, jnp.sum(w)))


def prompt_mean() -> AdvantageTransform:
    """Mean over prompts of each prompt's token mean (DAPO, 2503.14476, eq. 8).

    Prompts without weight, such as filtered groups, are not counted.
    """

    def share(w, rollout):
        del rollout
        group = jnp.sum(w, (1, 2), keepdims=True)
        return numerics.safe_divide(w, group * jnp.sum(group > 0, dtype=jnp.float32))

    return _reduction("prompt_mean()", share)


def sequence_mean() -> AdvantageTransform:
    """Mean over rows of each row's token mean (GRPO, arXiv:2402.03300, eq. 3).

    Rows without weight are not counted.
    """

    def share(w, rollout):
        del rollout
        row = jnp.sum(w, -1, keepdims=True)
        return numerics.safe_divide(w, row * jnp.sum(row > 0, dtype=jnp.float32))

    return _reduction("sequence_mean()", share)


def constant_length(num_tokens: int) -> AdvantageTransform:
    """Mean over rows of token sums divided by a constant (Dr. GRPO, 2503.20783).

    All P * G rows count, even empty ones: the divisor does not depend on the batch.

    Args:
      num_tokens: the constant, tokens; usually the longest completion allowed.
    """
    check.number("num_tokens", num_tokens, above=0)

    def share(w, rollout):
        del rollout
        return w / (w.shape[0] * w.shape[1] * num_tokens)

    return _reduction("constant_length()", share)


def constant_sum(num_tokens: int) -> AdvantageTransform:
    """Sum over all tokens of all rows, divided by a constant (LUFFY's and HPT's code).

    Unlike `constant_length` it does not divide by the number of rows, so it grows with
    the batch. With Adam that matters only beside other terms or gradient clipping.

    Args:
      num_tokens: the constant, tokens.
    """
    check.number("num_tokens", num_tokens, above=0)
    return _reduction("constant_sum()", lambda w, rollout: w / num_tokens)


def weighted_sequence_mean(
    row_weight_fn: Callable[[Rollout], jax.Array],
) -> AdvantageTransform:
    """Weighted mean over rows of each row's token mean.

    sum_i w_i mean_t l_it / sum_i w_i; rows without tokens are not counted.

    Args:
      row_weight_fn: rollout -> w >= 0, broadcastable to f32[P, G].
    """
    check.function("row_weight_fn", row_weight_fn, "rollout")

    def share(w, rollout):
        row = jnp.sum(w, -1)
        given = jnp.where(row > 0, row_weight_fn(rollout), 0.0)
        given = given.astype(jnp.float32)
        per_token = numerics.safe_divide(given, row * jnp.sum(given))
        return w * per_token[..., None]

    return _reduction("weighted_sequence_mean()", share)


def scale_weight(coefficient: ArrayLike) -> AdvantageTransform:
    """Multiplies the weight: a term's coefficient; place it after the reduction.

    Args:
      coefficient: >= 0. If a traced one is negative or NaN, the step is refused. To
        change a term's sign, negate its loss function.
    """
    check.number("coefficient", coefficient, low=0)
    return stateless(lambda c, r: c.replace(weight=c.weight * coefficient))
