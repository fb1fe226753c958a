"""Arrays put on a mesh, and where those of a state lie."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import processes
from rljax.mesh import hints
from rljax.mesh.rules import PLAIN, Layout, logical_axes, partition


def state_shardings(tree, mesh: Mesh, layout: Layout = PLAIN):
    """Where each array of a state lies: parameters, and all that mirrors them, in
    shards, everything else on every device.

    For `jit(init, out_shardings=...)`, so that a state is nowhere whole.

    Args:
      tree: arrays or jax.ShapeDtypeStructs.
    """

    def sharding(path, x):
        names = logical_axes(path, x.ndim)
        return NamedSharding(mesh, partition(layout.update, names, mesh.shape, x.shape))

    return jax.tree.map_with_path(sharding, tree)


def in_shards(begin: Callable, mesh: Mesh | None, layout: Layout = PLAIN) -> Callable:
    """`begin` as a program that puts each device's part of the new state there.

    Its first argument is donated.
    """
    if mesh is None:
        return jax.jit(begin, donate_argnums=0)

    def run(*args):
        state = jax.eval_shape(begin, *args)
        where = state_shardings(state, mesh, layout)
        return jax.jit(begin, donate_argnums=0, out_shardings=where)(*args)

    return run


def place(tree, mesh: Mesh | None, layout: Layout = PLAIN):
    """Puts a state on the mesh as it is stored; without a mesh leaves it alone."""
    if mesh is None:
        return tree
    return processes.put(tree, state_shardings(tree, mesh, layout))


def stored(tree) -> list[NamedSharding | None]:
    """Where each leaf of a state lies on the mesh in use; None without one."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return [None] * len(jax.tree.leaves(tree))
    return jax.tree.leaves(state_shardings(tree, mesh, hints.layout()))


def shard_prompts(tree, mesh: Mesh | None, axis: int = 0, layout: Layout = PLAIN):
    """Puts arrays on the mesh, split along `axis`; without a mesh leaves them alone."""
    if mesh is None:
        return tree
    return processes.put(tree, prompt_sharding(mesh, axis, layout))


def prompt_sharding(mesh: Mesh, axis: int = 0, layout: Layout = PLAIN) -> NamedSharding:
    """Where arrays lie whose prompts are along `axis`."""
    spec = partition(layout.update, (*(None,) * axis, "prompts"), mesh.shape)
    return NamedSharding(mesh, spec)


def replicate(tree, mesh: Mesh | None):
    """Puts arrays on every device of the mesh; without a mesh leaves them alone."""
    if mesh is None:
        return tree
    return processes.put(tree, NamedSharding(mesh, PartitionSpec()))


def copied(tree, mesh: Mesh, layout: Layout = PLAIN, min_bytes: int = 2**20):
    """Bytes of the large leaves that every device holds whole, by tree path."""
    found = jax.tree.leaves_with_path(state_shardings(tree, mesh, layout))
    leaves = jax.tree.leaves(tree)
    return {
        jax.tree_util.keystr(path): x.size * x.dtype.itemsize
        for (path, sharding), x in zip(found, leaves, strict=True)
        if sharding.is_fully_replicated and x.size * x.dtype.itemsize >= min_bytes
    }
