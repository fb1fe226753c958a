"""Shapes that say where their arrays lie: to compile for a mesh that holds nothing."""

import math

import jax
from jax.sharding import Mesh, NamedSharding

from rljax.mesh.placement import prompt_sharding, state_shardings
from rljax.mesh.rules import PLAIN, Layout, is_key


def stored(tree, mesh: Mesh | None, layout: Layout = PLAIN):
    """Those of a state; without a mesh they are left alone."""
    if mesh is None:
        return tree
    return jax.tree.map(_lying, tree, state_shardings(tree, mesh, layout))


def split(tree, mesh: Mesh | None, layout: Layout = PLAIN, *, axis: int = 0):
    """Those of arrays that are split along `axis`, the prompts."""
    if mesh is None:
        return tree
    where = prompt_sharding(mesh, axis, layout)
    return jax.tree.map(lambda x: _lying(x, where), tree)


def raised(tree, num: int):
    """Those of batches whose first axis is raised to a multiple of `num`."""

    def rise(x):
        rows = -(-x.shape[0] // num) * num
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)

    return jax.tree.map(rise, tree)


def device_bytes(tree, mesh: Mesh | None, layout: Layout = PLAIN) -> int:
    """What one device holds of a state, keys apart."""

    def size(x):
        shape = x.shape if mesh is None else x.sharding.shard_shape(x.shape)
        return 0 if is_key(x) else math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(stored(tree, mesh, layout))))


def _lying(x, where: NamedSharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
