"""Arrays moved from the devices of one mesh to those of another, past the host.

An array is copied from device to device where every shard of the result is a shard of
what is moved. So both meshes are seen as the same number of parts: a program on the old
devices cuts an array into the parts, these are copied, and a program on the new devices
makes the shards of them. Of several processes each copies between its own devices.
"""

import functools
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from rljax.mesh.placement import state_shardings
from rljax.mesh.rules import PLAIN, Layout


def move(tree, source: Mesh, target: Mesh, layout: Layout = PLAIN):
    """A state on the devices of another mesh, as it is stored there.

    Nothing waits for it: the programs and copies stand in the queues of the devices.

    Args:
      tree: arrays on all devices of `source`.

    Raises:
      ValueError: where a process lacks a part that its new devices need. None does if
        each has as many devices of a mesh as all others, side by side in its order.
    """
    leaves, structure = jax.tree.flatten(tree)
    num = math.gcd(source.size, target.size)
    there, here = _parts(source, num, leaves), _parts(target, num, leaves)
    stored = tuple(jax.tree.leaves(state_shardings(tree, target, layout)))
    with jax.set_mesh(source):
        cut = _laid_out(there)(tuple(leaves))
    copies = tuple(map(_copied, cut, here))
    with jax.set_mesh(target):
        return structure.unflatten(_laid_out(stored)(copies))


def everywhere(tree, target: Mesh):
    """Arrays of which every old device has a copy, on every device of a mesh.

    No program runs on the new devices, so they need not be done with others before.
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
    """Each array in `num` parts along the first axis that they divide, or whole."""
    parted = Mesh(mesh.devices.reshape(num, -1), ("part", "copy"))

    def sharding(x):
        axis = next((i for i, n in enumerate(x.shape) if n % num == 0), None)
        spec = () if axis is None else (*(None,) * axis, "part")
        return NamedSharding(parted, PartitionSpec(*spec))

    return tuple(map(sharding, leaves))


@functools.cache
def _laid_out(shardings: tuple[NamedSharding, ...]):
    """A program that gives its arguments back with these shardings."""
    return jax.jit(lambda leaves: leaves, out_shardings=shardings)
