"""Token statistics, computed chunk by chunk so that not all logits exist at once."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import mesh, numerics
from rljax.types import Samples, TokenStats

MAX_LOGITS = 2**27
"""Default for the number of float32 logits held at once on each device."""


def token_stats(
    logits_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    states: jax.Array,
    samples: Samples,
    *,
    max_logits: int,
) -> TokenStats:
    """Log-probability and entropy of the samples' tokens, nats.

    Args:
      logits_fn: (params, hidden states [..., D]) -> logits f32[..., V].
      params: the parameters that `logits_fn` reads, a policy's `logits_params`.
      states: [P, G, T, D]; the state at t predicts completion token t.
      max_logits: see `in_chunks`.
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
    """Applies `stats_fn` to the tokens of each prompt, a chunk of tokens at a time.

    A chunk holds some tokens of every prompt, so that each device scores its own
    prompts: see `mesh.by_prompts`. The logits that `stats_fn` makes exist for one chunk
    only; the backward pass computes them again.

    Args:
      stats_fn: pure, (params, tokens i32[rows], *states [rows, D]) -> tree of
        [rows, ...]. All tokens are valid ids, also outside the mask.
      logits_fn: (params, hidden states [..., D]) -> logits f32[..., V].
      params: the parameters that both read.
      *states: hidden states of one or several models, each [P, G, T, D].
      max_logits: largest number of float32 logits to hold at once on each device, but
        at least one token's for each of its prompts. If all logits are fewer, there is
        one chunk, and the backward pass recomputes nothing.

    Returns:
      The tree, each leaf [P, G, T, ...].
    """
    num_ids = jax.eval_shape(logits_fn, params, states[0]).shape[-1]
    tokens = numerics.readable_ids(samples.tokens, samples.mask, num_ids)

    def of_device(params, tokens, *states):
        # These are the prompts of one device; the mesh may also split the vocabulary.
        of_token = tokens.shape[0] * -(-num_ids // mesh.parts("vocab"))
        most = max(1, max_logits // of_token)
        return _by_chunks(functools.partial(stats_fn, params), most, tokens, *states)

    return mesh.by_prompts(of_device, params, tokens, *states)


def _by_chunks(stats_fn: Callable, most: int, *arrays: jax.Array):
    """`stats_fn` of arrays [P, G, T, ...], up to `most` tokens of a prompt at once."""
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
