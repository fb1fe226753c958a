"""Microbatches: pieces of a minibatch whose activations exist at once.

A piece holds some of the prompts, and of each prompt some of its samples: groups are
cut into `groups * lengths` parts, each of which computes its prompt again. If `lengths`
is above 1, each group is sorted by length first, so that short samples are not padded
to the longest. T is then cut as well: there are `lengths` sizes, and each piece is
computed up to the smallest one that holds it. Each size is compiled. A loss function is
local to its row, so the sum over pieces is the gradient of the whole; `gradient` says
what is done where one is not.
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
    lengths: parts of each group by length, and sizes of T.
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
    """[P, ...] -> [num, P / num, ...] by stride: prompts m, m + num, ...

    Contiguous pieces would each lie on one device of a mesh; strided ones on all.
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
      fn: its arrays are [P, G, T, ...], of the piece it is given; bare arrays and core
        types.
      credits, batch: what is cut into pieces; the credits may be any core types. Cut to
        a size is what has a token axis, see `layout.over_tokens`.
      start: the first carry.

    Returns:
      The last carry, the numbers summed over pieces, and the arrays of the whole batch
      [P, G, T, ...]; beyond a piece's size they are 0.
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


def _length(mask):  # i32[P, G]; a mask may have holes
    return jnp.max(jnp.where(mask, 1 + jnp.arange(mask.shape[-1]), 0), -1)


def _by_length(mask, num):
    """i32[P * G]: an order of all rows in which groups stay together.

    The longest row of each group comes first. Groups are ordered so that the first
    piece of `split` gets those with most tokens, the second the next, and so on.
    """
    length = _length(mask)
    P, G = length.shape
    prompts = jnp.argsort(-jnp.sum(length, 1)).reshape(num, P // num).T.reshape(P)
    return (prompts[:, None] * G + jnp.argsort(-length, 1)[prompts]).reshape(P * G)


def _over(prompts_fn, rows_fn, tree):
    """Applies one function to arrays of prompts, the other to arrays with a G axis."""

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

    def prompts(x):
        return x[order.reshape(x.shape[0], -1)[:, 0] // (order.size // x.shape[0])]

    return _over(prompts, rows, tree)


def _cut(tree, num, parts):
    """[P, G, ...] -> [num * parts, P / num, G / parts, ...]."""

    def rows(x):
        x = x.reshape(*x.shape[:2], parts, -1, *x.shape[3:])
        return jnp.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:])

    return _over(lambda x: jnp.repeat(x, parts, 0), rows, split(tree, num))


def _join(tree, num, parts):
    """Undoes `_cut` for arrays with a G axis."""

    def rows(x):
        x = jnp.moveaxis(x.reshape(num, parts, *x.shape[1:]), 1, 2)
        return x.reshape(*x.shape[:2], -1, *x.shape[4:])

    return merge(jax.tree.map(rows, tree))


def _resize(tree, old, new):
    """Cuts or pads with zeros the token axes, from `old` tokens to `new`."""

    def resize(x):
        if new < old:
            return x[:, :, :new]
        return jnp.pad(x, [(0, new - old) if i == 2 else (0, 0) for i in range(x.ndim)])

    return tree if old == new else over_tokens(resize, tree)
