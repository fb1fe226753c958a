"""Scoring without ever holding all logits: token statistics chunk by chunk."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import mesh, numerics
from rljax.types import Samples, TokenStats

MAX_LOGITS = 2**27
"""Float32 logits that may exist at once on each device."""


def token_stats(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    states: jax.Array,
    samples: Samples,
    *,
    max_logits: int,
) -> TokenStats:
    """Log-probability and entropy of the samples' tokens.

    Args:
      logits_fn: (params, hidden states [..., D]) -> logits f32[..., V].
      params: what `logits_fn` reads, a policy's `logits_params`.
      states: [P, G, T, D]; the state at t predicts completion token t.
      max_logits: logits that may exist at once on each device.
    """

    def stats(params, tokens, states):
        return numerics.logp_and_entropy(logits_fn(params, states), tokens)

    logp, entropy = in_chunks(
        stats, logits_fn, params, samples, states, max_logits=max_logits
    )
    return TokenStats(logp=logp, entropy=entropy)


def in_chunks(
    stats_fn: Callable[..., Any],
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    samples: Samples,
    *states: jax.Array,
    max_logits: int,
):
    """Applies `stats_fn` to the tokens of each prompt, a chunk of them at a time.

    Chunks run along the tokens of each prompt, never across prompts, so that every
    device scores its own prompts: see `mesh.by_prompts`. The logits that `stats_fn`
    makes exist for one chunk only; the backward pass makes them again.

    Args:
      stats_fn: pure, (params, tokens i32[rows], states [rows, D] of each) -> tree of
        [rows, ...]. Tokens outside the mask can be looked up, too.
      logits_fn: (params, hidden states [..., D]) -> logits f32[..., V].
      params: what both read.
      *states: hidden states of one or several models, each [P, G, T, D].
      max_logits: logits that may exist at once on each device; those of one token of
        each of its prompts always do. If all logits are fewer, there is one chunk, and
        the backward pass keeps what it needs.

    Returns:
      The tree, each leaf [P, G, T, ...].
    """
    num_ids = jax.eval_shape(logits_fn, params, states[0]).shape[-1]
    tokens = numerics.readable_ids(samples.tokens, samples.mask, num_ids)

    def of_device(params, tokens, *states):
        # Prompts are those of this device; what else the mesh splits are logits.
        of_token = tokens.shape[0] * -(-num_ids // mesh.parts("vocab"))
        most = max(1, max_logits // of_token)
        return _by_chunks(functools.partial(stats_fn, params), most, tokens, *states)

    return mesh.by_prompts(of_device, params, tokens, *states)


def _by_chunks(stats_fn: Callable, most: int, *arrays: jax.Array):
    """`stats_fn` of arrays [P, G, T, ...], `most` tokens of each prompt at once."""
    P, G, T = arrays[0].shape[:3]
    num_chunks = -(-G * T // most)
    size = -(-G * T // num_chunks)

    def apply(*parts):  # each [P, size, ...]; rows are flat for the matrix products
        flat = [x.reshape(-1, *x.shape[2:]) for x in parts]
        out = stats_fn(*flat)
        return jax.tree.map(lambda x: x.reshape(P, -1, *x.shape[1:]), out)

    def cut(x):  # [P, G*T, ...] -> [chunks, P, size, ...]
        pad = [(0, 0), (0, -(G * T) % size)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad)
        return jnp.moveaxis(x.reshape(P, -1, size, *x.shape[2:]), 1, 0)

    def uncut(x):
        return jnp.moveaxis(x, 0, 1).reshape(P, -1, *x.shape[3:])[:, : G * T]

    joined = [x.reshape(P, G * T, *x.shape[3:]) for x in arrays]
    if num_chunks == 1:
        out = apply(*joined)
    else:
        one_chunk = jax.checkpoint(lambda parts: apply(*parts))
        out = jax.lax.map(one_chunk, tuple(map(cut, joined)))
        out = jax.tree.map(uncut, out)
    return jax.tree.map(lambda x: x.reshape(P, G, T, *x.shape[2:]), out)
