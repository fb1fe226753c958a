"""Causal attention by cuDNN, for GPUs: the scores are never stored in memory.

A row is one sequence without gaps, its prompt and then its completion; the prompt's
keys are copied for each sample. cuDNN's causal mask aligns the first query with the
first key, so zeros stand for the prompt's queries. That wastes (S / (S + T))^2 of the
work, 1/25 for a prompt of 2,048 tokens and a completion of 8,192. cuDNN also returns
the log-sum-exp, with which prompt and completion could be attended to separately; but
jax drops its gradient.

No test runs cuDNN, because no GPU was available. Tests compare this file with
`attention.attend_causally` using jax's own implementation in cuDNN's place, and check
that the program lowered for CUDA calls cuDNN forward and backward. On a GPU,
`benchmarks.attention_check` makes the comparison with cuDNN itself.
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
    """`attention.attend_causally` by cuDNN, with the same arguments and one more.

    The window must be static. Each device of a mesh calls cuDNN for its own prompts and
    heads.

    Args:
      implementation: of `jax.nn.dot_product_attention`, "cudnn" or "xla".

    Returns:
      [P, H, G, R, T, D] in q's dtype; scores and the softmax's sums are float32.

    Raises:
      ValueError: when traced, for a cap or a dtype that cuDNN does not support.
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
    U = S + T + (S + T) % 2  # jax refuses to differentiate odd lengths

    def sequence(x, begin):  # writes x [P, H, G, ..., T, D] after each prompt's end
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
