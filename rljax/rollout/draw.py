"""Which token is drawn, and what is written down of it.

A draw function takes logits f32[items, rows, V], keys [items, rows] and positions
i32[items], and returns a dict of arrays [items, rows]:

    token      i32, the id
    mask       bool, True
    old        log-probability and entropy under the policy, nats
    behaviour  the same under the distribution drawn from, if that is another one
    kept       the mass that truncation left, if `behaviour` is there
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import keys, numerics

Draw = Callable[[jax.Array, jax.Array, jax.Array], dict[str, Any]]


def at_random(top_k: int | None, top_p: float | None) -> Draw:
    """Draws from the policy, truncated to `top_k` and then to `top_p` (None: not)."""

    def draw(logits, sample_keys, t):
        drawn_from, kept = truncate(logits, top_k, top_p)
        noise = jax.vmap(jax.vmap(_gumbel, (0, None, None)), (0, 0, None))
        token = jnp.argmax(drawn_from + noise(sample_keys, t, logits.shape[-1]), -1)
        written = _written(logits, token)
        if top_k is None and top_p is None:
            return written
        behaviour = numerics.logp_and_entropy(drawn_from, written["token"])
        return written | {"behaviour": behaviour, "kept": kept}

    return draw


def most_likely(logits: jax.Array, sample_keys: jax.Array, t: jax.Array):
    """Takes the most likely token. What is drawn from is a point mass."""
    del sample_keys, t
    written = _written(logits, jnp.argmax(logits, -1))
    zero = jnp.zeros(written["token"].shape, jnp.float32)  # log 1, and no entropy
    return written | {"behaviour": (zero, zero), "kept": zero + 1}


def _written(logits, token) -> dict[str, Any]:
    token = token.astype(jnp.int32)
    old = numerics.logp_and_entropy(logits, token)
    return {"token": token, "mask": jnp.ones(token.shape, bool), "old": old}


def _gumbel(key, t, num):
    return jax.random.gumbel(keys.at(key, t), (num,), jnp.float32)


def truncate(logits: jax.Array, top_k: int | None, top_p: float | None):
    """Logits with -inf outside top-k and then top-p, and the mass that is left.

    Args:
      logits: f32[..., V], after temperature.
      top_k: keeps the k most likely tokens; ties with the k-th are kept.
      top_p: keeps the smallest set of the most likely tokens with at least this mass,
        a fraction of what top-k left.

    Returns:
      Truncated logits f32[..., V] and the kept mass f32[...], a fraction.
    """
    out = logits
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(out, top_k)[0][..., -1:]
        out = jnp.where(out >= threshold, out, -jnp.inf)
    if top_p is not None and top_p < 1:
        ordered = jnp.sort(out, -1, descending=True)
        p = jax.nn.softmax(ordered, -1)
        # A token stays if the mass before it is below top_p: the first always does.
        stays = jnp.cumsum(p, -1) - p < top_p
        threshold = jnp.min(jnp.where(stays, ordered, jnp.inf), -1, keepdims=True)
        out = jnp.where(out >= threshold, out, -jnp.inf)
    kept = jnp.sum(jnp.where(jnp.isneginf(out), 0.0, jax.nn.softmax(logits, -1)), -1)
    return out, kept
