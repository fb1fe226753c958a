"""Attention of one token over a prompt, the tokens before it, and itself.

The keys of earlier tokens are a ring of blocks. It is only read, a block at a time, and
only up to the tokens so far; the token's own key is scored apart. So what a token reads
grows with the tokens before it, and no cache is copied. The softmax is summed block by
block, as in `attention_blocks`; nothing is approximate.

Symbols as in `attention`: `U` keys of a ring, `B` of a block; q is one token's,
[P, H, G, R, 1, D].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.model.attention import PLAIN, KeyValue, Scores

BLOCK = 128
"""Keys of a block at most, where `NUM_BLOCKS` of them are enough."""

NUM_BLOCKS = 8
"""Blocks of a ring at most: with more, a token would read little less."""

_NEVER = -1e30  # a score that gives a key no weight


class Ring(NamedTuple):
    """Keys of the tokens before this one, of all `N` groups of layers.

    keys: [P, N * H * G, U, D], or [P, N, H * G, U, D] where a mesh splits heads.
    place: i32[] where in U the token's own key will lie; its predecessors lie before.
    count, most: i32[P] how many there are of each row, and i32[] its maximum.
    """

    keys: KeyValue
    place: jax.Array
    count: jax.Array
    most: jax.Array


def block(num_keys: int) -> int:
    """B of a ring for so many keys; all of them if they are few."""
    num_blocks = min(-(-num_keys // BLOCK), NUM_BLOCKS)
    return num_keys if num_blocks == 1 else 16 * -(-num_keys // (16 * num_blocks))


def ring_size(num_keys: int) -> int:
    """U of a ring for so many keys: whole blocks."""
    return num_keys + -num_keys % block(num_keys)


def of_group(x: jax.Array, n, num_groups: int, start=0, size: int | None = None):
    """[P, H, size, D] of a `PromptCache` or `Ring`: some keys of group n of layers."""
    P, D = x.shape[0], x.shape[-1]
    size = x.shape[-2] if size is None else size
    if x.ndim == 5:
        part = jax.lax.dynamic_slice(
            x, (0, n, 0, start, 0), (P, 1, x.shape[2], size, D)
        )
        return part[:, 0]
    heads = x.shape[1] // num_groups
    return jax.lax.dynamic_slice(x, (0, n * heads, start, 0), (P, heads, size, D))


def attend_one(
    q: jax.Array,
    new: KeyValue,
    prompt: KeyValue,
    seen: jax.Array,
    ring: Ring,
    n: jax.Array,
    num_groups: int,
    *,
    window: jax.typing.ArrayLike | None = None,
    style: Scores = PLAIN,
) -> jax.Array:
    """Softmax attention of one token per row.

    Args:
      q: [P, H, G, R, 1, D].
      new: the token's own, [P, H * G, 1, D].
      prompt: [P, H, S, D], shared by the group.
      seen: bool[P, 1, 1, S], which of the prompt's keys are seen.
      ring: earlier tokens of the completions.
      n: i32[], the group of layers.
      window: tokens that are seen, the token itself included; may be traced. None: all.
      style: how scores are made.

    Returns:
      Like q; scores and all sums are float32.
    """
    P, H, G, R, _, D = q.shape
    scalar = D if style.scalar is None else style.scalar
    scaled = (q * jnp.asarray(scalar**-0.5, q.dtype)).reshape(P, H * G, R, D)

    def more(carry, keys, visible):
        """One more set of keys, [P, H or H * G, ., D]."""
        top, total, out = carry
        rows = scaled.reshape(P, keys.key.shape[1], -1, D)
        scores = _capped(_product("phrd,phkd->phrk", rows, keys.key), style)
        scores = jnp.where(visible, scores, _NEVER).reshape(P, H * G, R, -1)
        new_top = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
        exp, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        weights = exp.astype(q.dtype).reshape(*rows.shape[:-1], -1)
        part = _product("phrk,phkd->phrd", weights, keys.value)
        total = total * shrink + jnp.sum(exp, -1, keepdims=True)
        return new_top, total, out * shrink + part.reshape(out.shape)

    own = jnp.sum(scaled.astype(jnp.float32) * new.key, -1, keepdims=True)
    value = jnp.broadcast_to(new.value.astype(jnp.float32), scaled.shape)
    carry = _capped(own, style), jnp.ones_like(own), value
    carry = more(carry, prompt, seen)

    U = ring.keys.key.shape[-2]
    B = block(U)

    def one_block(j, carry):
        start = j % (U // B) * B
        keys = jax.tree.map(lambda x: of_group(x, n, num_groups, start, B), ring.keys)
        age = (ring.place - start - jnp.arange(B)) % U  # tokens ago; 0: the oldest
        visible = (age > 0) & (age <= ring.count[:, None])
        if window is not None:
            visible &= age < window
        return more(carry, keys, visible[:, None, None])

    if U == B:
        _, total, out = one_block(0, carry)
    else:
        reach = ring.most if window is None else jnp.minimum(ring.most, window - 1)
        end = (ring.place - 1) // B + 1
        begin = jnp.maximum((ring.place - reach) // B, end - U // B)
        _, total, out = jax.lax.fori_loop(begin, end, one_block, carry)
    return (out / total).astype(q.dtype).reshape(q.shape)


def _capped(scores, style: Scores):
    return scores if style.cap is None else style.cap * jnp.tanh(scores / style.cap)


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
