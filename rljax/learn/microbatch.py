"""Microbatches: pieces of a minibatch whose activations exist at once.

A piece is some of the prompts with, if lengths are told apart, some of each prompt's
samples: the group is sorted by length and cut into `num_lengths` parts, so that the
short ones are not padded to the longest. Each piece is computed up to the smallest of
`num_lengths` sizes that holds it, all of them compiled. A loss function sees rows one
by one, so the sum over pieces is the gradient of the whole.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import mesh, numerics
from rljax.types import Credit, Prompts, Rollout, over_tokens


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
    start,
    batch: Rollout,
    credits: tuple[Credit, ...],
    *,
    num: int,
    num_lengths: int = 1,
):
    """Scans `fn(carry, rollout, credits) -> (carry, numbers, [P, G, T, ...] arrays)`.

    Args:
      num: pieces along the prompts.
      num_lengths: parts of each group, and sizes of T. What is cut to a size is what
        has a token axis, see `types.over_tokens`; bare arrays that `fn` returns do.

    Returns:
      The last carry, the numbers summed, the arrays of the whole batch [P, G, T, ...];
      beyond a piece's size they are 0.
    """
    mask = batch.samples.mask
    T = mask.shape[-1]
    sizes = numerics.equal_steps(T, num_lengths)
    order = _by_length(mask, num) if num_lengths > 1 else None
    pieces = _cut(_sort((batch, credits), order), num, num_lengths)

    def upto(size, carry, piece):
        carry, numbers, arrays = fn(carry, *_resize(piece, T, size))
        return carry, (numbers, _resize(arrays, size, T))

    def one(carry, piece):
        piece = mesh.constrain(piece)
        longest = jnp.max(_length(piece[0].samples.mask))
        fits = jnp.searchsorted(jnp.asarray(sizes), longest)
        branches = [functools.partial(upto, size) for size in sizes]
        return jax.lax.switch(fits, branches, carry, piece)

    carry, (numbers, arrays) = jax.lax.scan(one, start, pieces)
    arrays = _join(arrays, num, num_lengths)
    if order is not None:
        arrays = _sort(arrays, jnp.argsort(order))
    return carry, jax.tree.map(lambda x: jnp.sum(x, 0), numbers), arrays


def _length(mask):  # i32[P, G]; a mask may have holes
    return jnp.max(jnp.where(mask, 1 + jnp.arange(mask.shape[-1]), 0), -1)


def _by_length(mask, num):
    """An order of all rows, i32[P * G], in which groups stay together.

    Each group has its longest row first; `split` gives its first piece the groups with
    most tokens, and so on.
    """
    length = _length(mask)
    P, G = length.shape
    prompts = jnp.argsort(-jnp.sum(length, 1)).reshape(num, P // num).T.reshape(P)
    return (prompts[:, None] * G + jnp.argsort(-length, 1)[prompts]).reshape(P * G)


def _over(prompts_fn, rows_fn, tree):
    """Applies one function to arrays of prompts, the other to all that have G axes."""

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
    """Undoes `_cut` for arrays that have G axes."""

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
