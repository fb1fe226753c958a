"""Where arrays have their prompts and tokens: the layouts of the core types.

Layouts are declared here. Sizes cannot tell them, as T may equal any other size.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax.types import Credit, Prompts, Rollout, Samples, TokenStats, Verdict

# Which fields have a token axis.
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
        verdicts and what belongs to whole samples stay as they are.

    Raises:
      ValueError: when traced, if what should have a token axis does not.
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
                _require_tokens(x, name, value)
                changes[name] = jax.tree.map(fn, value)
            elif node(value):
                changes[name] = apply(value)
        if isinstance(x, Credit) and x.advantage.shape[2] > 1:
            changes["advantage"] = fn(x.advantage)
        return x.replace(**changes)

    return jax.tree.map(apply, tree, is_leaf=node)


def _require_tokens(x, name, value):
    if not isinstance(x, TokenStats) or name != "extra":
        return
    shape = jnp.shape(x.logp)[:3]
    for key, array in value.items():
        if jnp.shape(array)[:3] != shape:
            raise ValueError(
                f"extra[{key!r}] must begin with [P, G, T] = {list(shape)}, got"
                f" {list(jnp.shape(array))}; what has no token axis belongs into"
                " `row_extra`."
            )


def take(tree: Any, rows: Any) -> Any:
    """These prompts of a rollout, of prompts, of credits: arrays [P, ...] at `rows`."""
    return jax.tree.map(lambda x: x[rows], tree)
