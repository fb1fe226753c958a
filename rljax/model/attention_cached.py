"""Exact attention of one token over its prompt, the tokens before it, and itself.

The keys of earlier tokens lie in a ring buffer of a few blocks. A block is read only if
some row sees one of its keys, so the cost of a token grows with the tokens before it.
The softmax is accumulated block by block, as in `attention_blocks`.

Symbols as in `attention`: `U` keys of a ring, `B` keys of a block. q belongs to one
token per row, [P, H, G, R, 1, D].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.model.attention import NEVER, PLAIN, KeyValue, Scores, capped, scale

MIN_BLOCK, MAX_BLOCK = 16, 1024
"""Limits of the keys per block. Between them a ring has 4 blocks: each block is
compiled separately, and more blocks would save little reading."""


class Ring(NamedTuple):
    """Ring buffer with the keys of the completions, for all `N` groups of layers.

    parts: one array per block, or one array with all blocks; each is
      [P, N * H * G, keys, D], or [P, N, H * G, keys, D] where a mesh splits heads.
    place: i32[] index in U of the present token; its predecessors lie before it.
    count: i32[P] predecessors of each row's token.
    most: i32[] the maximum of `count`.
    """

    parts: tuple[KeyValue, ...]
    place: jax.Array
    count: jax.Array
    most: jax.Array


def num_blocks(num_keys: int) -> int:
    """Blocks of a ring for the given number of keys."""
    return max(min(-(-num_keys // MIN_BLOCK), 4), -(-num_keys // MAX_BLOCK))


def part_sizes(num_keys: int, num_groups: int) -> list[int]:
    """Keys of each part of a ring that holds num_keys; their sum U may be larger.

    XLA:CPU copies slices of an array, so with one group of layers each block is an
    array of its own. With several groups, the scan over layers slices the cache anyway;
    XLA:TPU reads blocks of one array without a copy.
    """
    num = num_blocks(num_keys)
    size = -(-num_keys // num)
    return [size] * num if num_groups == 1 else [size * num]


def num_keys(parts: tuple[KeyValue, ...]) -> int:
    """U, the keys that a ring has room for."""
    return sum(part.key.shape[-2] for part in parts)


def write(
    parts: tuple[KeyValue, ...], new: KeyValue, place: jax.Array
) -> tuple[KeyValue, ...]:
    """The parts after the keys of one token were written at index `place` of U.

    Args:
      parts: of a `Ring`.
      new: keys and values of one token, [P, ..., 1, D], with the axes of a part.
      place: i32[] index in U.
    """
    size = parts[0].key.shape[-2]

    def put(old, new, here):
        new = new.reshape(*old.shape[:-2], 1, old.shape[-1])
        at = jnp.clip(here, 0, size - 1)
        if len(parts) > 1:  # only one part changes
            there = jax.lax.dynamic_slice_in_dim(old, at, 1, -2)
            new = jnp.where(at == here, new, there)
        return jax.lax.dynamic_update_slice_in_dim(old, new, at, -2)

    return tuple(
        jax.tree.map(lambda x, y, j=j: put(x, y, place - j * size), part, new)
        for j, part in enumerate(parts)
    )


def of_group(x: jax.Array, n: jax.Array, num_groups: int, start=0, size=None):
    """Keys of group n of layers: [P, heads, size, D], from `start`; size None: all."""
    P, D, size = len(x), x.shape[-1], x.shape[-2] if size is None else size
    if x.ndim == 5:
        cut = jax.lax.dynamic_slice(x, (0, n, 0, start, 0), (P, 1, x.shape[2], size, D))
        return cut[:, 0]
    heads = x.shape[1] // num_groups
    return jax.lax.dynamic_slice(x, (0, n * heads, start, 0), (P, heads, size, D))


def attend_one(
    q: jax.Array,
    new: KeyValue | None,
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
      new: the token's own keys, [P, H * G, 1, D]; None if the ring already has them.
      prompt: [P, H, S, D], shared by the group.
      seen: bool[P, 1, 1, S], which of the prompt's keys the token sees.
      ring: keys of the earlier tokens.
      n: i32[], the group of layers.
      num_groups: N, static.
      window: tokens that are seen, the token itself included; may be traced. None: all.
      style: how scores are made.

    Returns:
      [P, H, G, R, 1, D] in q's dtype; scores and all sums are float32.
    """
    P, H, G, R, _, D = q.shape
    scaled = (q * scale(q, style)).reshape(P, H * G, R, D)

    def more(sums, keys, visible):
        """Adds one more set of keys, [P, H or H * G, keys, D], to the softmax."""
        top, total, out = sums
        rows = scaled.reshape(P, keys.key.shape[1], -1, D)
        scores = capped(_product("phrd,phkd->phrk", rows, keys.key), style.cap)
        scores = jnp.where(visible, scores, NEVER).reshape(P, H * G, R, -1)
        new_top = jnp.maximum(top, jnp.max(scores, -1, keepdims=True))
        exp, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
        weights = exp.astype(q.dtype).reshape(*rows.shape[:-1], -1)
        part = _product("phrk,phkd->phrd", weights, keys.value)
        total = total * shrink + jnp.sum(exp, -1, keepdims=True)
        return new_top, total, out * shrink + part.reshape(out.shape)

    if new is None:
        nothing = jnp.zeros(scaled.shape, jnp.float32)
        sums = nothing[..., :1] + NEVER, nothing[..., :1], nothing
    else:
        own = jnp.sum(scaled.astype(jnp.float32) * new.key, -1, keepdims=True)
        value = jnp.broadcast_to(new.value.astype(jnp.float32), scaled.shape)
        sums = capped(own, style.cap), jnp.ones_like(own), value
    sums = more(sums, prompt, seen)

    U = num_keys(ring.parts)
    B = U // num_blocks(U)
    youngest = 0 if new is None else 1  # age in tokens of the ring's newest key
    reach = ring.most if window is None else jnp.minimum(ring.most, window - 1)

    def with_block(part, start, sums):
        """Adds the block of B keys that begins at index `start` of U."""
        offset = start if len(ring.parts) == 1 else 0
        keys = jax.tree.map(lambda x: of_group(x, n, num_groups, offset, B), part)
        age = youngest + (ring.place - youngest - start - jnp.arange(B)) % U
        visible = age <= ring.count[:, None]
        if window is not None:
            visible &= age < window
        return more(sums, keys, visible[:, None, None])

    if U == B:
        sums = with_block(ring.parts[0], 0, sums)
    elif len(ring.parts) == 1:

        def one_block(j, sums):
            return with_block(ring.parts[0], j % (U // B) * B, sums)

        end = (ring.place - youngest) // B + 1
        begin = jnp.maximum((ring.place - reach) // B, end - U // B)
        sums = jax.lax.fori_loop(begin, end, one_block, sums)
    else:
        for j, part in enumerate(ring.parts):
            # How far the block's first key lies behind the newest key; its last key is
            # B - 1 tokens younger.
            behind = (ring.place - youngest - j * B) % U
            is_seen = youngest + jnp.maximum(behind - (B - 1), 0) <= reach
            read = functools.partial(with_block, part, j * B)
            sums = jax.lax.cond(is_seen, read, lambda sums: sums, sums)
    _, total, out = sums
    return (out / total).astype(q.dtype).reshape(q.shape)


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
