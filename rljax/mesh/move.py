"""Arrays moved from the devices of one mesh to those of another, past the host.

`jax.device_put` copies from device to device where every shard of the result is a shard
of what is moved. All else it takes through the host, which waits for it. So both meshes
are seen as the same number of parts: a program on the old devices cuts an array into
the parts, these are copied, and a program on the new devices makes the shards of them.
"""

import functools
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import processes
from rljax.mesh.placement import state_shardings
from rljax.mesh.rules import PLAIN, Layout


def move(tree, source: Mesh, target: Mesh, layout: Layout = PLAIN):
    """A state on the devices of another mesh, as it is stored there.

    Nothing waits for it: the programs and copies stand in the queues of the devices.

    Args:
      tree: arrays on all devices of `source`.

    Raises:
      ValueError: where there are several processes.
    """
    if processes.count() > 1:
        raise ValueError(
            "arrays move between meshes of one process only, got"
            f" {processes.count()} processes; train on one mesh of all their devices."
        )
    leaves, structure = jax.tree.flatten(tree)
    num = math.gcd(source.size, target.size)
    there, here = _parts(source, num, leaves), _parts(target, num, leaves)
    stored = tuple(jax.tree.leaves(state_shardings(tree, target, layout)))
    with jax.set_mesh(source):
        cut = _laid_out(there)(tuple(leaves))
    copies = jax.device_put(cut, here)
    with jax.set_mesh(target):
        return structure.unflatten(_laid_out(stored)(copies))


def everywhere(tree, target: Mesh):
    """Arrays of which every old device has a copy, on every device of a mesh.

    No program runs on the new devices, so they need not be done with others before.
    """
    return jax.device_put(tree, NamedSharding(target, PartitionSpec()))


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
