"""The shardings of a state, and functions that put arrays on a mesh."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import processes
from rljax.mesh import hints
from rljax.mesh.rules import PLAIN, Layout, logical_axes, partition


def state_shardings(tree, mesh: Mesh, layout: Layout = PLAIN):
    """The sharding of each leaf of a state.

    Parameters are sharded, and so are leaves whose paths end like a parameter's
    (moments, references). Everything else is replicated. With
    `jit(init, out_shardings=...)`, no device ever holds a whole state.

    Args:
      tree: arrays or jax.ShapeDtypeStructs.
      mesh: in use.
      layout: its `update` rules say how parameters are stored.
    """

    def sharding(path, x):
        names = logical_axes(path, x.ndim)
        return NamedSharding(mesh, partition(layout.update, names, mesh.shape, x.shape))

    return jax.tree.map_with_path(sharding, tree)


def in_shards(begin: Callable, mesh: Mesh | None, layout: Layout = PLAIN) -> Callable:
    """Compiles `begin(...) -> state` such that each device gets its own shards.

    The first argument of `begin` is donated.
    """
    if mesh is None:
        return jax.jit(begin, donate_argnums=0)

    def run(*args):
        state = jax.eval_shape(begin, *args)
        where = state_shardings(state, mesh, layout)
        return jax.jit(begin, donate_argnums=0, out_shardings=where)(*args)

    return run


def place(tree, mesh: Mesh | None, layout: Layout = PLAIN):
    """Puts a state on the mesh, sharded as it is stored; None leaves it alone."""
    if mesh is None:
        return tree
    return processes.put(tree, state_shardings(tree, mesh, layout))


def stored(tree) -> list[NamedSharding | None]:
    """The sharding of each leaf of a state on the mesh in use; None without a mesh."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return [None] * len(jax.tree.leaves(tree))
    return jax.tree.leaves(state_shardings(tree, mesh, hints.layout()))


def shard_prompts(tree, mesh: Mesh | None, axis: int = 0, layout: Layout = PLAIN):
    """Puts arrays on the mesh, with prompts sharded along `axis`; None: leaves them."""
    if mesh is None:
        return tree
    return processes.put(tree, prompt_sharding(mesh, axis, layout))


def prompt_sharding(mesh: Mesh, axis: int = 0, layout: Layout = PLAIN) -> NamedSharding:
    """The sharding of arrays whose prompts are along `axis`."""
    spec = partition(layout.update, (*(None,) * axis, "prompts"), mesh.shape)
    return NamedSharding(mesh, spec)


def replicate(tree, mesh: Mesh | None):
    """Puts arrays on every device of the mesh; None leaves them alone."""
    if mesh is None:
        return tree
    return processes.put(tree, NamedSharding(mesh, PartitionSpec()))


def copied(tree, mesh: Mesh, layout: Layout = PLAIN, min_bytes: int = 2**20):
    """Tree path -> bytes, for replicated leaves of at least `min_bytes`."""
    found = jax.tree.leaves_with_path(state_shardings(tree, mesh, layout))
    leaves = jax.tree.leaves(tree)
    return {
        jax.tree_util.keystr(path): x.size * x.dtype.itemsize
        for (path, sharding), x in zip(found, leaves, strict=True)
        if sharding.is_fully_replicated and x.size * x.dtype.itemsize >= min_bytes
    }
