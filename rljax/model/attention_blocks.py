"""Exact causal attention in blocks: scores exist for one pair of blocks at a time.

Memory grows linearly with the number of tokens. The softmax is accumulated block by
block, and the backward pass recomputes the scores from each query's log-sum-exp
(FlashAttention, arXiv:2205.14135, algorithms 1 and 4; FlashAttention-2,
arXiv:2307.08691). It is plain JAX and runs on every device.

Symbols as in `attention`; `B` tokens per block, and `Q = R B` rows of a block of
queries. Keys are [P, H, G, U, D], or [P, H, U, D] where the group shares them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.model.attention import NEVER, PLAIN, KeyValue, Scores, capped, scale

BLOCK = 512
"""Tokens per block. The scores of a pair of blocks are P H G R B^2 float32 numbers."""

SCOPE = "blocks_of_keys"
"""Of the loop over the keys of a block of queries, for who counts its turns."""

_EVERYTHING = 2**30  # a window wider than any sequence


class _Keys(NamedTuple):
    """Keys and values, padded to whole blocks; a query never sees a later key.

    key, value: [P, H, G, U, D], or [P, H, U, D] where the group shares them.
    offset: i32[P] position of the first query, in the numbering of these keys.
    count: i32[P] number of keys that are not padding.
    """

    key: jax.Array
    value: jax.Array
    offset: jax.Array
    count: jax.Array


def attend_in_blocks(
    q: jax.Array,
    own: KeyValue,
    prompt: KeyValue | None = None,
    prompt_mask: jax.Array | None = None,
    *,
    window: jax.typing.ArrayLike | None = None,
    style: Scores = PLAIN,
    block: int = BLOCK,
) -> jax.Array:
    """`attention.attend_causally` in blocks, with the same arguments and one more.

    Args:
      block: tokens per block.

    Returns:
      [P, H, G, R, T, D] in q's dtype. Scores, the softmax's sums and the gradients of
      keys are accumulated in float32.
    """
    P, H, G, R, T, D = q.shape
    B = min(block, T)
    scaled = q * scale(q, style)
    sets = [_padded(own, (P, H, G, T, D), jnp.zeros(P, jnp.int32), T, B)]
    if prompt is not None and prompt_mask is not None:
        length = jnp.sum(prompt_mask, -1, dtype=jnp.int32)
        sets.append(_padded(prompt, prompt.key.shape, length, length, B))
    window = jnp.asarray(_EVERYTHING if window is None else window, jnp.int32)
    out = _attend(B, style.cap, _blocks(scaled, B), tuple(sets), window)
    # [T / B, P, H, G, R B, D] -> [P, H, G, R, T, D]
    out = jnp.moveaxis(out.reshape(-1, P, H, G, R, B, D), 0, 4)
    return out.reshape(P, H, G, R, -1, D)[..., :T, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(B, cap, q, sets, window):
    return _forward(B, cap, q, sets, window)[0]


def _forward(B, cap, q, sets, window):
    # Masks do not depend on the layer, so XLA would compute them all before the scan
    # over layers: 8 GiB for 16 samples of 8,192 tokens and 32 heads. The barrier makes
    # them depend on the layer's queries.
    q, sets = jax.lax.optimization_barrier((q, sets))

    def rows(inputs):
        i, qi = inputs

        def more(j, carry, n):
            keys, (top, total, out) = sets[n], carry
            kj, vj = _cut(keys, j, B)
            scores = _scores(qi, kj, cap, _visible(keys, i, j, B, qi, window))
            new = jnp.maximum(top, jnp.max(scores, -1))
            exp, shrink = jnp.exp(scores - new[..., None]), jnp.exp(top - new)
            out = out * shrink[..., None] + _values(exp.astype(qi.dtype), vj)
            return new, total * shrink + jnp.sum(exp, -1), out

        zero = jnp.zeros(qi.shape[:-1], jnp.float32)
        carry = zero + NEVER, zero, jnp.zeros(qi.shape, jnp.float32)
        top, total, out = _over_keys(more, carry, sets, i, B, window)
        return (out / total[..., None]).astype(qi.dtype), top + jnp.log(total)

    out, log_sum = jax.lax.map(rows, (jnp.arange(len(q)), q))
    return out, (q, sets, window, out, log_sum)


def _backward(B, cap, residuals, grad):
    q, sets, window, out, log_sum = residuals
    # With p = softmax(s) and out = p @ v, the gradient g of out gives for the scores s:
    # ds = p * (g @ v - delta), where delta is g . out.
    delta = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), -1)

    def rows(found, inputs):
        i, qi, gi, log_sum_i, delta_i = inputs

        def pull(j, carry, n):
            keys, (dq, found) = sets[n], carry
            kj, vj = _cut(keys, j, B)
            scores = _scores(qi, kj, cap, _visible(keys, i, j, B, qi, window))
            p = jnp.exp(scores - log_sum_i[..., None])
            push = p * (_products(gi, vj) - delta_i[..., None])
            if cap is not None:  # the slope of cap * tanh(x / cap)
                push *= 1 - jnp.square(scores / cap) * (scores > NEVER)
            p, push = p.astype(qi.dtype), push.astype(qi.dtype)
            parts = _to_keys(push, qi, kj), _to_keys(p, gi, vj)
            added = [_add(x, j, B, y) for x, y in zip(found[n], parts, strict=True)]
            found = (*found[:n], tuple(added), *found[n + 1 :])
            return dq + _values(push, kj), found

        carry = jnp.zeros(qi.shape, jnp.float32), found
        dq, found = _over_keys(pull, carry, sets, i, B, window)
        return found, dq.astype(qi.dtype)

    zeros = tuple(
        tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys.key, keys.value))
        for keys in sets
    )
    inputs = jnp.arange(len(q)), q, grad, log_sum, delta
    found, dq = jax.lax.scan(rows, zeros, inputs)
    nothing = {"offset": None, "count": None}
    grads = tuple(
        keys._replace(key=dk.astype(dq.dtype), value=dv.astype(dq.dtype), **nothing)
        for (dk, dv), keys in zip(found, sets, strict=True)
    )
    return dq, grads, None


_attend.defvjp(_forward, _backward)


def _over_keys(step, carry, sets, i, B, window):
    """Folds `step(j, carry, n)` over the blocks j of `sets[n]` that queries i see."""
    for n, keys in enumerate(sets):
        own = functools.partial(step, n=n)
        with jax.named_scope(SCOPE):
            carry = jax.lax.fori_loop(*_reach(keys, i, B, window), own, carry)
    return carry


def _reach(keys: _Keys, i, B, window):
    """The range [first, end) of key blocks that block i of queries may see.

    Prompts are read whole, because what a window hides differs from prompt to prompt.
    """
    if keys.key.ndim == 4:
        return 0, keys.key.shape[-2] // B
    return jnp.maximum(i * B - window + 1, 0) // B, i + 1


def _visible(keys: _Keys, i, j, B, qi, window):
    """bool[P, 1, 1, Q, B]: which keys of block j the queries of block i see."""
    t = i * B + jnp.arange(qi.shape[-2]) % B
    place = j * B + jnp.arange(B)
    age = (keys.offset[:, None] + t)[..., None] - place
    there = (place < keys.count[:, None])[:, None]
    return ((age >= 0) & (age < window) & there)[:, None, None]


def _scores(q, k, cap, visible):
    return jnp.where(visible, capped(_products(q, k), cap), NEVER)


def _group(x):
    """The einsum letter of the samples' axis; keys shared by the group have none."""
    return "g" if x.ndim == 5 else ""


def _products(q, k):  # [P, H, G, Q, B]
    return _einsum(f"phgqd,ph{_group(k)}kd->phgqk", q, k)


def _values(p, v):  # [P, H, G, Q, D]
    return _einsum(f"phgqk,ph{_group(v)}kd->phgqd", p, v)


def _to_keys(p, x, keys):  # shaped like keys: summed over the queries that read them
    return _einsum(f"phgqk,phgqd->ph{_group(keys)}kd", p, x)


def _einsum(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _cut(keys: _Keys, j, B):
    def block(x):
        return jax.lax.dynamic_slice_in_dim(x, j * B, B, -2)

    return block(keys.key), block(keys.value)


def _add(x, j, B, y):
    block = jax.lax.dynamic_slice_in_dim(x, j * B, B, -2) + y
    return jax.lax.dynamic_update_slice_in_dim(x, block, j * B, -2)


def _padded(keys: KeyValue, shape, offset, count, B) -> _Keys:
    """Keys and values in the given shape, padded to whole blocks of B."""
    width = [(0, 0)] * (len(shape) - 2) + [(0, -shape[-2] % B), (0, 0)]
    key, value = (jnp.pad(x.reshape(shape), width) for x in keys)
    return _Keys(key, value, offset, jnp.broadcast_to(count, offset.shape))


def _blocks(q, B):
    """[P, H, G, R, T, D] -> [T / B, P, H, G, R B, D], padded to whole blocks."""
    P, H, G, R, T, D = q.shape
    q = jnp.pad(q, [(0, 0)] * 4 + [(0, -T % B), (0, 0)])
    q = jnp.moveaxis(q.reshape(P, H, G, R, -1, B, D), 4, 0)
    return q.reshape(-1, P, H, G, R * B, D)
