"""Copies arrays from the devices of one mesh to those of another, without the host.

Arrays are copied directly between devices, which needs every shard of the result to be
a shard of the source. So both meshes are divided into the same number of parts. A
program on the old devices reshards an array into these parts, the parts are copied, and
a program on the new devices reshards them into the final shards. Each process copies
between its own devices.
"""

import functools
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rljax.mesh.placement import state_shardings
from rljax.mesh.rules import PLAIN, Layout


def move(tree, source: Mesh, target: Mesh, layout: Layout = PLAIN):
    """Copies a state to another mesh, with the sharding that is stored there.

    The call does not block: programs and copies are enqueued on the devices.

    Args:
      tree: arrays on all devices of `source`.
      source, target: disjoint or overlapping meshes.
      layout: of the target.

    Raises:
      ValueError: if a process does not have a part that its new devices need. Every
        process has its parts if all have the same number of devices in a mesh, and both
        meshes list them in the same order: `make(in_order=True)`.
    """
    leaves, structure = jax.tree.flatten(tree)
    num = math.gcd(source.size, target.size)
    old_parts, new_parts = _parts(source, num, leaves), _parts(target, num, leaves)
    stored = tuple(jax.tree.leaves(state_shardings(tree, target, layout)))
    with jax.set_mesh(source):
        parts = _reshard(old_parts)(tuple(leaves))
    copies = tuple(map(_copied, parts, new_parts))
    with jax.set_mesh(target):
        return structure.unflatten(_reshard(stored)(copies))


def everywhere(tree, target: Mesh):
    """Copies replicated arrays to every device of another mesh.

    No program runs on the new devices, so the copy need not wait for programs there.
    """
    where = NamedSharding(target, PartitionSpec())
    return jax.tree.map(lambda x: _copied(x, where), tree)


def _copied(x: jax.Array, where: Sharding) -> jax.Array:
    """The same array on other devices; each new shard is one of this process."""

    def place(index):  # of keys, shards say one of an axis more
        return tuple(s.indices(n) for s, n in zip(index, x.shape, strict=False))

    mine = {place(shard.index): shard.data for shard in x.addressable_shards}
    wanted = where.addressable_devices_indices_map(x.shape)
    if not {place(index) for index in wanted.values()} <= mine.keys():
        raise ValueError(
            "arrays move between the devices of one process, so each must have the same"
            " parts of both meshes, but the parts of"
            f" {sorted({d.id for d in x.sharding.device_set})} in this process are not"
            f" those of {sorted({d.id for d in where.device_set})}; take as many"
            " devices of each process for either mesh, in the order of the processes."
        )
    shards = [jax.device_put(mine[place(index)], d) for d, index in wanted.items()]
    return jax.make_array_from_single_device_arrays(x.shape, where, shards)


def _parts(mesh: Mesh, num: int, leaves) -> tuple[NamedSharding, ...]:
    """Shardings in `num` parts along the first axis they divide, or replicated."""
    parted = Mesh(mesh.devices.reshape(num, -1), ("part", "copy"))

    def sharding(x):
        axis = next((i for i, n in enumerate(x.shape) if n % num == 0), None)
        spec = () if axis is None else (*(None,) * axis, "part")
        return NamedSharding(parted, PartitionSpec(*spec))

    return tuple(map(sharding, leaves))


@functools.cache
def _reshard(shardings: tuple[NamedSharding, ...]):
    """A program that returns its arguments with the given shardings."""
    return jax.jit(lambda leaves: leaves, out_shardings=shardings)
