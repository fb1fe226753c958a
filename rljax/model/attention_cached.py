"""Attention of one token over a prompt, the tokens before it, and itself.

The keys of earlier tokens are a ring of a few blocks. A block is read only if some row
sees a key of it, so what a token reads grows with the tokens before it. The softmax is
summed block by block, as in `attention_blocks`; nothing is approximate.

Symbols as in `attention`: `U` keys of a ring, `B` of a block. q is one token's,
[P, H, G, R, 1, D].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.model.attention import NEVER, PLAIN, KeyValue, Scores, capped, scale

MIN_BLOCK, MAX_BLOCK = 16, 1024
"""Keys of a block. Between them a ring has 4 blocks: with more, a token would read
little less, and each is compiled."""


class Ring(NamedTuple):
    """Keys of a completion's tokens, of all `N` groups of layers.

    parts: arrays of one block each, or a single one of all, [P, N * H * G, ., D], or
      [P, N, H * G, ., D] where a mesh splits heads.
    place: i32[] where in U the present token belongs; its predecessors lie before.
    count, most: i32[P] predecessors of each row, and i32[] the largest number of them.
    """

    parts: tuple[KeyValue, ...]
    place: jax.Array
    count: jax.Array
    most: jax.Array


def num_blocks(num_keys: int) -> int:
    """Blocks of a ring for so many keys."""
    return max(min(-(-num_keys // MIN_BLOCK), 4), -(-num_keys // MAX_BLOCK))


def part_sizes(num_keys: int, num_groups: int) -> list[int]:
    """Keys of each part of a ring, for so many in all; U may be a few more.

    XLA:CPU copies what is cut out of an array, so blocks are arrays of their own. Where
    layers are a scan, theirs are cut out anyway, and XLA:TPU reads blocks of one array
    without a copy.
    """
    num = num_blocks(num_keys)
    size = -(-num_keys // num)
    return [size] * num if num_groups == 1 else [size * num]


def num_keys(parts: tuple[KeyValue, ...]) -> int:
    """U of a ring."""
    return sum(part.key.shape[-2] for part in parts)


def write(
    parts: tuple[KeyValue, ...], new: KeyValue, place: jax.Array
) -> tuple[KeyValue, ...]:
    """The parts with one token's keys, [P, ..., 1, D] for theirs, at i32[] place."""
    size = parts[0].key.shape[-2]

    def put(old, new, here):
        new = new.reshape(*old.shape[:-2], 1, old.shape[-1])
        at = jnp.clip(here, 0, size - 1)
        if len(parts) > 1:  # it belongs in one of them
            there = jax.lax.dynamic_slice_in_dim(old, at, 1, -2)
            new = jnp.where(at == here, new, there)
        return jax.lax.dynamic_update_slice_in_dim(old, new, at, -2)

    return tuple(
        jax.tree.map(lambda x, y, j=j: put(x, y, place - j * size), part, new)
        for j, part in enumerate(parts)
    )


def of_group(x: jax.Array, n: jax.Array, num_groups: int, start=0, size=None):
    """Keys of group n of layers, [P, H, size, D] or alike: all, or those from start."""
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
      new: the token's own, [P, H * G, 1, D]; None where it is in the ring already.
      prompt: [P, H, S, D], shared by the group.
      seen: bool[P, 1, 1, S], which of the prompt's keys are seen.
      ring: the tokens before.
      n: i32[], the group of layers.
      window: tokens that are seen, the token itself included; may be traced. None: all.
      style: how scores are made.

    Returns:
      Like q; scores and all sums are float32.
    """
    P, H, G, R, _, D = q.shape
    scaled = (q * scale(q, style)).reshape(P, H * G, R, D)

    def more(sums, keys, visible):
        """With one more set of keys, [P, H or H * G, ., D]."""
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
    youngest = 0 if new is None else 1  # tokens ago
    reach = ring.most if window is None else jnp.minimum(ring.most, window - 1)

    def with_block(part, start, sums):
        """With the block at `start` in U, all of a part or a block of it."""
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
            behind = (ring.place - youngest - j * B) % U  # the youngest: the first key
            is_seen = youngest + jnp.maximum(behind - (B - 1), 0) <= reach
            read = functools.partial(with_block, part, j * B)
            sums = jax.lax.cond(is_seen, read, lambda sums: sums, sums)
    _, total, out = sums
    return (out / total).astype(q.dtype).reshape(q.shape)


def _product(spec, a, b):
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
