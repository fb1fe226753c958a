"""Copies arrays from the devices of one mesh to those of another, without the host.

`jax.device_put` copies directly between devices only if every shard of the result is a
shard of the source; otherwise it goes through the host and blocks. So both meshes are
divided into the same number of parts. A program on the old devices reshards an array
into these parts, the parts are copied, and a program on the new devices reshards them
into the final shards.
"""

import functools
import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import processes
from rljax.mesh.placement import state_shardings
from rljax.mesh.rules import PLAIN, Layout


def move(tree, source: Mesh, target: Mesh, layout: Layout = PLAIN):
    """Copies a state to another mesh, with the sharding that is stored there.

    The call does not block: programs and copies are enqueued on the devices.

    Args:
      tree: arrays on all devices of `source`.
      source, target: disjoint or overlapping meshes of this process.
      layout: of the target.

    Raises:
      ValueError: if there are several processes.
    """
    if processes.count() > 1:
        raise ValueError(
            "arrays can move only between meshes of one process, got"
            f" {processes.count()} processes; train on one mesh of all their devices."
        )
    leaves, structure = jax.tree.flatten(tree)
    num = math.gcd(source.size, target.size)
    old_parts, new_parts = _parts(source, num, leaves), _parts(target, num, leaves)
    stored = tuple(jax.tree.leaves(state_shardings(tree, target, layout)))
    with jax.set_mesh(source):
        parts = _reshard(old_parts)(tuple(leaves))
    copies = jax.device_put(parts, new_parts)
    with jax.set_mesh(target):
        return structure.unflatten(_reshard(stored)(copies))


def everywhere(tree, target: Mesh):
    """Copies replicated arrays to every device of another mesh.

    No program runs on the new devices, so the copy need not wait for programs there.
    """
    return jax.device_put(tree, NamedSharding(target, PartitionSpec()))


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
