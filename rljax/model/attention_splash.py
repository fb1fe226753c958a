"""Causal attention by jax's splash kernel, for TPUs: scores are never stored in memory.

A row's keys are a copy of its prompt's keys, followed by its own. So each prompt has
G S keys and values in place of S, beside the G T of its completions, and gradients are
summed over the copies. The kernel also returns the log-sum-exp, with which prompt and
completion could be attended to separately; but it has no gradient for that.

The kernel gets a static mask, so that it skips fully masked blocks, and segment ids,
which hide the padding of prompts. Symbols as in `attention`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)

from rljax import mesh
from rljax.model.attention import PLAIN, KeyValue, Scores, scale, sequences

BLOCK = 512
"""Maximum tokens per tile; a multiple of 128, the width of a TPU vector."""

_LANES = 128


def attend_by_splash(
    q: jax.Array,
    own: KeyValue,
    prompt: KeyValue | None = None,
    prompt_mask: jax.Array | None = None,
    *,
    window: int | None = None,
    style: Scores = PLAIN,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend_causally` by the kernel, with the same arguments and one more.

    The window must be static. Each device of a mesh calls the kernel for its own
    prompts and heads.

    Args:
      interpret: whether jax interprets the kernel, slowly, on any device.

    Returns:
      [P, H, G, R, T, D] in q's dtype; scores and the softmax's sums are float32.
    """
    of_device = functools.partial(_of_device, window, style.cap, interpret)
    keys = sequences(q, own, prompt, prompt_mask)
    return mesh.by_heads(of_device, q * scale(q, style), *keys)


def _of_device(window, cap, interpret, q, own: KeyValue, prompt: KeyValue, length):
    P, H, G, R, T, D = q.shape
    S = prompt.key.shape[2]
    block = min(BLOCK, _up(T, _LANES))
    num_queries = _up(T, block)
    num_keys = _up(S + num_queries, block)

    def joined(shared, own):  # [P, G, H, keys, D]
        if window is not None:
            # The kernel's window counts array places, so no padding may lie between
            # prompt and completion: move it to the front.
            shared = jax.vmap(functools.partial(jnp.roll, axis=-2))(shared, S - length)
        shared = jnp.broadcast_to(shared[:, :, None], (P, H, G, S, D))
        x = jnp.concatenate([shared, own], 3).swapaxes(1, 2)
        return _padded(x, num_keys)

    rows = _padded(q.swapaxes(1, 2).reshape(P, G, H * R, T, D), num_queries)
    place = jnp.arange(num_keys)
    there = place < length[:, None]
    if window is not None:
        there = place >= S - length[:, None]
    ids = kernel.SegmentIds(  # a query sees keys that have its id
        q=jnp.zeros((P, num_queries), jnp.int32),
        kv=jnp.where(there | (place >= S), 0, 1),
    )
    shape = num_queries, num_keys
    fn = _kernel(H * R, shape, S, window, cap=cap, block=block, interpret=interpret)
    of_prompt = jax.vmap(fn, (0, 0, 0, None))
    keys = jax.tree.map(joined, prompt, own)
    out: Any = jax.vmap(of_prompt)(rows, *keys, ids)
    return out[..., :T, :].reshape(P, G, H, R, T, D).swapaxes(1, 2)


def _kernel(num_heads, shape, before, window, *, cap, block, interpret):
    """The kernel for one row, in which query i has the position of key `before` + i."""
    mask = masks.CausalMask(shape, before)
    if window is not None:
        mask = masks.LocalMask(shape, (window - 1, 0), before)
    return kernel.make_splash_mha_single_device(
        masks.MultiHeadMask([mask] * num_heads),
        block_sizes=kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


def _padded(x, num):
    width = [(0, 0)] * (x.ndim - 2) + [(0, num - x.shape[-2]), (0, 0)]
    return jnp.pad(x, width)


def _up(num, unit):
    return -(-num // unit) * unit
