"""Meshes: algorithms are written in global view, the prompt axis is sharded.

Library code only says where the prompt axis must stay spread over the devices; without
a mesh these hints do nothing.
"""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make(devices=None) -> Mesh:
    """A one-dimensional mesh over all devices (or the given ones), axis `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        (len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices
    )


def constrain(tree):
    """Keeps the first axis of every array spread over the mesh in use, if any."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(DATA)), tree
    )


def shard_prompts(tree, mesh: Mesh, axis: int = 0):
    """Puts arrays on the mesh, split along `axis`."""
    spec = PartitionSpec(*(None,) * axis, DATA)
    return jax.device_put(tree, NamedSharding(mesh, spec))


def replicate(tree, mesh: Mesh):
    """Puts arrays on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
