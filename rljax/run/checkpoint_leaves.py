"""Reads single leaves of a checkpoint, without a template of the whole state."""

import re
from collections.abc import Collection
from typing import Any

import jax
from etils import epath

from rljax import digest
from rljax.run import checkpoint, checkpoint_folder


def read(path: epath.PathLike, names: Collection[str]) -> dict[str, jax.Array]:
    """Reads some leaves of a saved state; nothing else is read.

    Args:
      path: the folder of the checkpoint.
      names: tree paths such as ".params['norm']['scale']": a field of the state, then
        keys of nested dicts.

    Returns:
      Name -> leaf, on the first local device.

    Raises:
      ValueError: if the checkpoint has no such leaf.
      checkpoint.Corrupt: if the files do not hold what was saved.
    """
    from orbax.checkpoint import v1 as orbax

    path = epath.Path(path).absolute()
    beside = checkpoint_folder.saved(path)
    if beside is None:
        raise checkpoint.Corrupt("its metadata has changed since it was saved")
    if missing := sorted(set(names) - beside["leaves"].keys()):
        raise ValueError(
            f"{path} must hold {missing[0]}, but does not; name a checkpoint of this"
            " run."
        )
    like: dict[str, Any] = {}
    for name in names:
        dtype, _, sizes = beside["leaves"][name].rstrip("]").partition("[")
        shape = tuple(int(x) for x in sizes.split(",") if x)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        *above, last = _keys(name)
        inside = like
        for key in above:
            inside = inside.setdefault(key, {})
        inside[last] = jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    context = orbax.Context()
    context.pytree.loading.partial_load = True
    with context:
        loaded = orbax.load_checkpointables(path, {"state": like})["state"]
    found = {}
    for name in names:
        inside = loaded
        for key in _keys(name):
            inside = inside[key]
        found[name] = inside
    digests = {n: x.digest for n, x in digest.examine(found).items()}
    for name in names:
        if digests[f"[{name!r}]"] != beside["digests"][name]:
            raise checkpoint.Corrupt(f"{name} of {path} has changed since it was saved")
    return found


def _keys(name: str) -> list[str]:
    """.params['norm']['scale'] -> params, norm, scale."""
    field = name.removeprefix(".").partition("[")[0]
    return [field, *re.findall(r"\['([^']*)'\]", name)]
