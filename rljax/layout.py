"""The axes of the core types: which of their arrays have a token axis.

This is declared here and never inferred from sizes, as T may equal any other size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax.types import Credit, Prompts, Rollout, Samples, TokenStats, Verdict

# The fields that have a token axis.
_TOKEN_FIELDS = {
    TokenStats: {"logp", "entropy", "extra"},
    Samples: {"tokens", "mask"},
    Credit: {"weight"},  # and the advantage, unless it is [P, G, 1]
}
_CORE_TYPES = (Prompts, TokenStats, Samples, Verdict, Rollout, Credit)


def over_tokens(fn: Callable[[jax.Array], jax.Array], tree: Any) -> Any:
    """Applies `fn` to the arrays that have a token axis, [P, G, T, ...].

    Args:
      fn: changes the token axis, the third one.
      tree: core types and bare arrays [P, G, T, ...], nested in any way. Prompts,
        verdicts and arrays of whole samples stay as they are.

    Raises:
      ValueError: when traced, if an entry of `TokenStats.extra` has no token axis.
    """

    def node(x):
        return isinstance(x, _CORE_TYPES)

    def apply(x):
        if not node(x):
            return fn(x)
        fields = _TOKEN_FIELDS.get(type(x), set())
        changes = {}
        for name in (f.name for f in dataclasses.fields(x)):
            value = getattr(x, name)
            if name in fields:
                if name == "extra":
                    _require_token_axis(value, jnp.shape(x.logp)[:3])
                changes[name] = jax.tree.map(fn, value)
            elif node(value):
                changes[name] = apply(value)
        if isinstance(x, Credit) and x.advantage.shape[2] > 1:
            changes["advantage"] = fn(x.advantage)
        return x.replace(**changes)

    return jax.tree.map(apply, tree, is_leaf=node)


def _require_token_axis(extra: dict[str, Any], shape: tuple[int, ...]):
    for key, array in extra.items():
        if jnp.shape(array)[:3] != shape:
            raise ValueError(
                f"extra[{key!r}] must begin with [P, G, T] = {list(shape)}, got"
                f" {list(jnp.shape(array))}; put an array without a token axis into"
                " `row_extra`."
            )


def take(tree: Any, rows: Any) -> Any:
    """Indexes the prompt axis of a rollout, of prompts or of credits by `rows`."""
    return jax.tree.map(lambda x: x[rows], tree)
