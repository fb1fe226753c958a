"""Causal attention by cuDNN, for GPUs: no score is ever in memory.

A row is one sequence without gaps, its prompt and then its completion, with a copy of
the prompt's keys for each sample. cuDNN can only mask queries that begin with the keys.
So queries of zero stand for the prompt: (S / (S + T))^2 of the work is for nothing, a
25th for 2,048 + 8,192 tokens. (cuDNN returns a logarithm of sums, with which prompt and
completion could be attended to apart. But jax drops the gradient of that.)

No test runs it: there was no GPU. Tests hold this file to `attention.attend_causally`
with jax's own implementation of the same function in cuDNN's place, and look for
cuDNN's forward and backward in what is lowered for CUDA. On a GPU
`benchmarks.attention_check` holds cuDNN itself to it.
"""

import functools

import jax
import jax.numpy as jnp

from rljax import mesh
from rljax.model.attention import PLAIN, KeyValue, Scores, sequences

_DTYPES = ("bfloat16", "float16")


def attend_by_cudnn(
    q: jax.Array,
    own: KeyValue,
    prompt: KeyValue | None = None,
    prompt_mask: jax.Array | None = None,
    *,
    window: int | None = None,
    style: Scores = PLAIN,
    implementation: str = "cudnn",
) -> jax.Array:
    """`attention.attend_causally`, with the same arguments, but a static window.

    Each device of a mesh calls cuDNN for its own prompts and heads.

    Args:
      implementation: of `jax.nn.dot_product_attention`.

    Returns:
      [P, H, G, R, T, D] in q's dtype; scores and their sums are float32.

    Raises:
      ValueError: when traced, for what cuDNN's attention does not do.
    """
    if style.cap is not None:
        raise ValueError(
            'attention="cudnn" must not be given an attention_cap, got'
            f' {style.cap}, which cuDNN does not apply; take "blocks".'
        )
    if implementation == "cudnn" and q.dtype not in _DTYPES:
        raise ValueError(
            'attention="cudnn" must be given activations of bfloat16 or float16, got'
            f' {q.dtype}; change dtype or take "blocks".'
        )
    D = q.shape[-1]
    attend = functools.partial(
        jax.nn.dot_product_attention,
        scale=(D if style.scalar is None else style.scalar) ** -0.5,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    of_device = functools.partial(_of_device, attend)
    return mesh.by_heads(of_device, q, *sequences(q, own, prompt, prompt_mask))


def _of_device(attend, q, own: KeyValue, prompt: KeyValue, length):
    P, H, G, R, T, D = q.shape
    S = prompt.key.shape[2]
    U = S + T + (S + T) % 2  # in training jax refuses odd lengths

    def sequence(x, begin):  # x [P, H, G, ..., T, D] behind each prompt's last token
        return jax.vmap(_put)(begin, x, length)

    def joined(shared, own):  # [P * G, U, H, D]
        copies = jnp.broadcast_to(shared[:, :, None], (P, H, G, S, D))
        begin = jnp.pad(copies, [(0, 0)] * 3 + [(0, U - S), (0, 0)])
        return sequence(own, begin).transpose(0, 2, 3, 1, 4).reshape(-1, U, H, D)

    queries = sequence(q, jnp.zeros((P, H, G, R, U, D), q.dtype))
    queries = queries.transpose(0, 2, 4, 1, 3, 5).reshape(P * G, U, H * R, D)
    key, value = jax.tree.map(joined, prompt, own)
    num = jnp.repeat(length + T, G)
    out = attend(queries, key, value, query_seq_lengths=num, key_value_seq_lengths=num)
    out = out.reshape(P, G, U, H, R, D).transpose(0, 3, 1, 4, 2, 5)
    return jax.vmap(functools.partial(_take, num=T))(out, length)


def _put(into, x, at):
    return jax.lax.dynamic_update_slice_in_dim(into, x, at, -2)


def _take(x, at, num):
    return jax.lax.dynamic_slice_in_dim(x, at, num, -2)
