"""Scoring without ever holding all logits: token statistics chunk by chunk."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import numerics
from rljax.types import Samples


def by_chunks(stats_fn: Callable, num_chunks: int, *arrays: jax.Array):
    """Applies `stats_fn` to the tokens of each prompt, a chunk of them at a time.

    Chunks run along the tokens of each prompt, never across prompts, so that sharding
    the prompt axis leaves every chunk spread over all devices. What `stats_fn` makes on
    its way (logits) exists for one chunk only: it is made again in the backward pass.

    Args:
      stats_fn: pure, ([rows, ...] of each array) -> pytree of [rows, ...].
      num_chunks: how many; 1 applies it at once and keeps what the backward pass needs.
      *arrays: each [P, G, T, ...].

    Returns:
      The pytree, each leaf [P, G, T, ...].
    """
    P, G, T = arrays[0].shape[:3]
    size = -(-G * T // num_chunks)

    def apply(*parts):  # each [P, size, ...]; rows are flat for the matrix products
        flat = [x.reshape(-1, *x.shape[2:]) for x in parts]
        out = stats_fn(*flat)
        return jax.tree.map(lambda x: x.reshape(P, -1, *x.shape[1:]), out)

    joined = [x.reshape(P, G * T, *x.shape[3:]) for x in arrays]
    if num_chunks == 1:
        out = apply(*joined)
    else:

        def cut(x):  # [P, G*T, ...] -> [chunks, P, size, ...]
            pad = [(0, 0), (0, -(G * T) % size)] + [(0, 0)] * (x.ndim - 2)
            x = jnp.pad(x, pad)
            return jnp.moveaxis(x.reshape(P, -1, size, *x.shape[2:]), 1, 0)

        out = jax.lax.map(
            jax.checkpoint(lambda parts: apply(*parts)), tuple(map(cut, joined))
        )
        out = jax.tree.map(
            lambda x: jnp.moveaxis(x, 0, 1).reshape(P, -1, *x.shape[3:])[:, : G * T],
            out,
        )
    return jax.tree.map(lambda x: x.reshape(P, G, T, *x.shape[2:]), out)


def plan(logits_fn: Callable, params, states: jax.Array, samples: Samples, max_logits):
    """What scoring the tokens of samples by their states [P, G, T, D] needs to know.

    Returns:
      How many chunks keep the logits within `max_logits`, and the token ids
      i32[P, G, T], those outside the mask such that they can be looked up.
    """
    logits = jax.eval_shape(logits_fn, params, states)
    ids = numerics.readable_ids(samples.tokens, samples.mask, logits.shape[-1])
    return -(-logits.size // max_logits), ids
