"""Microbatches: pieces of a minibatch; only one piece's activations exist at a time.

A piece holds some of the prompts, and for each of them some of its samples: groups are
cut into `groups * lengths` parts, and each part computes its prompt again.

If `lengths` is above 1, each group is first sorted by length, so that short samples are
not padded to the longest. There are then `lengths` values for the token axis T, each
compiled separately; a piece is computed with the smallest one that holds it.

Loss functions are local to their rows, so the gradients of the pieces add up to that of
the minibatch. See `gradient` for losses that are not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import mesh, numerics
from rljax.layout import over_tokens
from rljax.types import Prompts, Rollout


class Pieces(NamedTuple):
    """Into how many pieces a minibatch is cut.

    num: pieces along the prompts.
    lengths: parts of each group by length, and number of values for T.
    groups: further parts of each group.
    """

    num: int = 1
    lengths: int = 1
    groups: int = 1

    @property
    def of_group(self) -> int:
        """Parts of each group."""
        return self.lengths * self.groups


def split(tree, num: int):
    """[P, ...] -> [num, P / num, ...] by stride: piece m has prompts m, m + num, ...

    A strided piece is spread over all devices of a mesh; a contiguous one would lie on
    one device.
    """
    return jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(-1, num, *x.shape[1:]), 1, 0), tree
    )


def merge(tree):
    """[num, P / num, ...] -> [P, ...]: undoes `split`."""
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), tree)


def over_pieces(
    fn: Callable,
    credits: Any,
    batch: Rollout,
    start: Any,
    pieces: Pieces,
):
    """Scans `fn(credits, rollout, carry) -> (carry, numbers, arrays)` over the pieces.

    Args:
      fn: called with a piece. Its `numbers` are added up. Its `arrays` are core types
        and bare arrays [P, G, T, ...] of the piece.
      credits, batch: cut into pieces; `credits` may be any core types. Arrays with a
        token axis are also cut to the piece's length, see `layout.over_tokens`.
      start: the first carry.
      pieces: how many.

    Returns:
      The last carry, the numbers summed over pieces, and the arrays of the whole batch,
      [P, G, T, ...]; they are 0 beyond a piece's length.
    """
    mask = batch.samples.mask
    T = mask.shape[-1]
    sizes = numerics.even_ends(T, pieces.lengths)
    order = _by_length(mask, pieces.num) if pieces.lengths > 1 else None
    parts = _cut(_sort((credits, batch), order), pieces.num, pieces.of_group)

    def upto(size, carry, part):
        carry, numbers, arrays = fn(*_resize(part, T, size), carry)
        return carry, (numbers, _resize(arrays, size, T))

    def one_piece(carry, part):
        part = mesh.constrain(part)
        longest = jnp.max(_length(part[1].samples.mask))
        fits = jnp.searchsorted(jnp.asarray(sizes), longest)
        branches = [functools.partial(upto, size) for size in sizes]
        return jax.lax.switch(fits, branches, carry, part)

    carry, (numbers, arrays) = jax.lax.scan(one_piece, start, parts)
    arrays = _join(arrays, pieces.num, pieces.of_group)
    if order is not None:
        arrays = _sort(arrays, jnp.argsort(order))
    return carry, jax.tree.map(lambda x: jnp.sum(x, 0), numbers), arrays


def _length(mask):
    """i32[P, G]: position after the last token under the mask, which may have holes."""
    return jnp.max(jnp.where(mask, 1 + jnp.arange(mask.shape[-1]), 0), -1)


def _by_length(mask, num):
    """i32[P * G]: an order of all rows in which groups stay together.

    The longest row of each group comes first. Groups are ordered such that the first
    piece of `split` gets those with the most tokens, the second piece the next ones,
    and so on.
    """
    length = _length(mask)
    P, G = length.shape
    prompts = jnp.argsort(-jnp.sum(length, 1)).reshape(num, P // num).T.reshape(P)
    return (prompts[:, None] * G + jnp.argsort(-length, 1)[prompts]).reshape(P * G)


def _over(prompts_fn, rows_fn, tree):
    """Applies `prompts_fn` to arrays of `Prompts`, `rows_fn` to arrays [P, G, ...]."""

    def is_prompts(x):
        return isinstance(x, Prompts)

    def apply(x):
        return jax.tree.map(prompts_fn, x) if is_prompts(x) else rows_fn(x)

    return jax.tree.map(apply, tree, is_leaf=is_prompts)


def _sort(tree, order):
    if order is None:
        return tree

    def rows(x):  # [P, G, ...]
        return x.reshape(-1, *x.shape[2:])[order].reshape(x.shape)

    def prompts(x):  # [P, ...]; each group's first row says which prompt comes here
        num_samples = order.size // x.shape[0]
        return x[order.reshape(-1, num_samples)[:, 0] // num_samples]

    return _over(prompts, rows, tree)


def _cut(tree, num, parts):
    """[P, G, ...] -> [num * parts, P / num, G / parts, ...]."""

    def rows(x):
        x = x.reshape(*x.shape[:2], parts, -1, *x.shape[3:])
        return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

    return _over(lambda x: jnp.repeat(x, parts, 0), rows, split(tree, num))


def _join(tree, num, parts):
    """Undoes `_cut` for arrays [P, G, ...]."""

    def rows(x):
        x = jnp.moveaxis(x.reshape(num, parts, *x.shape[1:]), 1, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    return merge(jax.tree.map(rows, tree))


def _resize(tree, old, new):
    """Cuts the token axes from `old` to `new` tokens, or pads them with zeros."""

    def resize(x):
        if new < old:
            return x[:, :, :new]
        return jnp.pad(x, [(0, new - old) if i == 2 else (0, 0) for i in range(x.ndim)])

    return tree if old == new else over_tokens(resize, tree)
