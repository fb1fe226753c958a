"""ShapeDtypeStructs with shardings, to compile for a mesh without any arrays."""

import math

import jax
from jax.sharding import Mesh, NamedSharding

from rljax.mesh.placement import prompt_sharding, state_shardings
from rljax.mesh.rules import PLAIN, Layout, is_key


def stored(tree, mesh: Mesh | None, layout: Layout = PLAIN):
    """The shapes of a state, with the stored shardings; None leaves them alone."""
    if mesh is None:
        return tree
    return jax.tree.map(_sharded, tree, state_shardings(tree, mesh, layout))


def split(tree, mesh: Mesh | None, layout: Layout = PLAIN, *, axis: int = 0):
    """The shapes of arrays whose prompts, along `axis`, are sharded."""
    if mesh is None:
        return tree
    where = prompt_sharding(mesh, axis, layout)
    return jax.tree.map(lambda x: _sharded(x, where), tree)


def raised(tree, num: int):
    """The shapes of batches, with the first axis rounded up to a multiple of `num`."""

    def round_up(x):
        rows = -(-x.shape[0] // num) * num
        return jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)

    return jax.tree.map(round_up, tree)


def device_bytes(tree, mesh: Mesh | None, layout: Layout = PLAIN) -> int:
    """Bytes of a state that one device holds, not counting PRNG keys."""

    def size(x):
        shape = x.shape if mesh is None else x.sharding.shard_shape(x.shape)
        return 0 if is_key(x) else math.prod(shape) * x.dtype.itemsize

    return sum(map(size, jax.tree.leaves(stored(tree, mesh, layout))))


def _sharded(x, where: NamedSharding):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
