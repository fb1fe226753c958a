"""How a token is drawn, and which statistics of it are recorded.

A draw function takes logits f32[items, rows, V], keys [items, rows] and positions
i32[items], and returns a dict of arrays [items, rows]:

    token      i32, the token id
    mask       bool, True
    old        (log-probability, entropy) under the policy, nats
    behaviour  the same under the distribution drawn from, if it differs from the policy
    kept       the probability that truncation kept; present if `behaviour` is
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import keys, numerics

Draw = Callable[[jax.Array, jax.Array, jax.Array], dict[str, Any]]


def at_random(top_k: int | None, top_p: float | None) -> Draw:
    """Draws from the policy, truncated to `top_k` and then to `top_p` unless None."""

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
    """Takes the most likely token; the behaviour distribution is a point mass."""
    del sample_keys, t
    written = _written(logits, jnp.argmax(logits, -1))
    zero = jnp.zeros(written["token"].shape, jnp.float32)  # log 1, entropy 0
    return written | {"behaviour": (zero, zero), "kept": zero + 1}


def _written(logits, token) -> dict[str, Any]:
    token = token.astype(jnp.int32)
    old = numerics.logp_and_entropy(logits, token)
    return {"token": token, "mask": jnp.ones(token.shape, bool), "old": old}


def _gumbel(key, t, num):
    return jax.random.gumbel(keys.at(key, t), (num,), jnp.float32)


def truncate(logits: jax.Array, top_k: int | None, top_p: float | None):
    """Sets logits outside top-k and then top-p to -inf.

    Args:
      logits: f32[..., V], after temperature.
      top_k: keeps the k most likely tokens; ties with the k-th are kept. None: all.
      top_p: keeps the smallest set of most likely tokens whose probabilities, after
        top-k, add up to at least this fraction. None: all.

    Returns:
      (truncated logits f32[..., V], the probability kept f32[...]).
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
