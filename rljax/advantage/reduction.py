"""Reductions: turn token weights into shares, so that the loss is a plain sum.

A reduction's scope is the minibatch of one optimiser step, all rows of all prompts.
Exactly one stands in each term's weighting. What a filter before it removed does not
enter the divisor; what stands after it does not change the divisor.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, stateless


def _reduction(name: str, share: Callable[[jax.Array], jax.Array]):
    def apply(credit, rollout):
        del rollout
        if credit.reduced:
            raise ValueError(
                f"{name} found weights that are reduced already; a term takes exactly"
                " one reduction: remove one from its weighting."
            )
        return credit.replace(weight=share(credit.weight), reduced=True)

    return stateless(apply)


def token_mean() -> AdvantageTransform:
    """Mean over all tokens of the minibatch: w / sum(w) (DAPO, arXiv:2503.14476)."""
    return _reduction("token_mean()", lambda w: numerics.safe_divide(w, jnp.sum(w)))


def prompt_mean() -> AdvantageTransform:
    """Mean over prompts of each one's token mean (DAPO, 2503.14476, eq. 8 as printed).

    Prompts without weight are not counted: those whose groups were filtered out.
    """

    def share(w):
        group = jnp.sum(w, (1, 2), keepdims=True)
        return numerics.safe_divide(w, group * jnp.sum(group > 0, dtype=jnp.float32))

    return _reduction("prompt_mean()", share)


def sequence_mean() -> AdvantageTransform:
    """Mean over rows of each row's token mean (GRPO, arXiv:2402.03300, eq. 3).

    Rows without weight are not counted: the mean runs over rows that have any token.
    """

    def share(w):
        row = jnp.sum(w, -1, keepdims=True)
        return numerics.safe_divide(w, row * jnp.sum(row > 0, dtype=jnp.float32))

    return _reduction("sequence_mean()", share)


def constant_length(num_tokens: int) -> AdvantageTransform:
    """Mean over rows of each row's token sum over a constant (Dr. GRPO, 2503.20783).

    All P * G rows count, empty ones too: the divisor does not depend on the batch.

    Args:
      num_tokens: the constant, tokens; usually the longest completion allowed.
    """
    check.number("num_tokens", num_tokens, above=0)

    def share(w):
        return w / (w.shape[0] * w.shape[1] * num_tokens)

    return _reduction("constant_length()", share)


def scale_weight(coefficient: jax.typing.ArrayLike) -> AdvantageTransform:
    """Multiplies the weight: a term's coefficient, placed after its reduction."""
    check.number("coefficient", coefficient, low=0)
    return stateless(lambda c, r: c.replace(weight=c.weight * coefficient))
