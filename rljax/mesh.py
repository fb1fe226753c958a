"""Meshes: algorithms are written in global view, the prompt axis is sharded.

Library code only says where the prompt axis must stay spread over the devices; without
a mesh these hints do nothing.
"""

import contextlib

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from rljax import processes

DATA = "data"


def make(devices=None) -> Mesh:
    """A one-dimensional mesh over all devices (or the given ones), axis `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
    )


def over_all() -> Mesh | None:
    """The mesh over all devices; None where there is one, which needs no mesh."""
    return make() if jax.device_count() > 1 else None


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    """`with using(mesh):` runs and traces on the mesh; None changes nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def alone() -> contextlib.AbstractContextManager:
    """`with alone():` runs on a device of this process, whatever the others do."""
    if processes.count() == 1:
        return contextlib.nullcontext()
    return jax.set_mesh(make(jax.local_devices()[:1]))


def size() -> int:
    """Devices of the mesh in use; 1 if there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def constrain(tree):
    """Keeps the first axis of every array spread over the mesh in use, if any.

    Scalars have none and stay as they are.
    """
    if size() == 1:
        return tree

    def spread(x):
        spec = PartitionSpec(DATA)
        return jax.lax.with_sharding_constraint(x, spec) if jnp.ndim(x) else x

    return jax.tree.map(spread, tree)


def shard_prompts(tree, mesh: Mesh | None, axis: int = 0):
    """Puts arrays on the mesh, split along `axis`; without a mesh leaves them alone."""
    if mesh is None:
        return tree
    spec = PartitionSpec(*(None,) * axis, DATA)
    return processes.put(tree, NamedSharding(mesh, spec))


def replicate(tree, mesh: Mesh | None):
    """Puts arrays on every device of the mesh; without a mesh leaves them alone."""
    if mesh is None:
        return tree
    return processes.put(tree, NamedSharding(mesh, PartitionSpec()))
