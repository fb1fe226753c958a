"""Parameters read from files straight to the devices that hold them.

Each device's part of a parameter is put together on the host, of slices of the files'
tensors, and is there no longer than it takes to go to its device. Beside it the host
holds one slice. Nothing is compiled.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from rljax.model.hugging_face.tensors import Part

Index = tuple[slice, ...]


class Piece(NamedTuple):
    """A part of a parameter, the open file that holds it, and its tensor there."""

    part: Part
    file: Any
    tensor: str


def read(
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    where: Mapping[str, Sharding | None],
    parts: Mapping[str, Sequence[Part]],
    stored: Mapping[str, Any],
    dtype: np.dtype,
) -> dict[str, jax.Array]:
    """Path -> parameter.

    Args:
      shapes: of the parameters, by path.
      where: they are to lie; None is the default device.
      parts: of each tensor, by its name.
      stored: tensor name -> the open safetensors file that holds it.
      dtype: of the parameters, whatever the files hold.
    """
    pieces: dict[str, list[Piece]] = {path: [] for path in shapes}
    for name, stacked in parts.items():
        for part in stacked:
            pieces[part.path].append(Piece(part, stored[name], name))

    def parameter(path):
        shape = shapes[path].shape
        return _placed(
            shape, where[path], lambda index: _block(index, shape, pieces[path], dtype)
        )

    return {path: parameter(path) for path in shapes}


def _placed(
    shape: tuple[int, ...],
    sharding: Sharding | None,
    block: Callable[[Index], np.ndarray],
) -> jax.Array:
    """An array of the blocks that its devices hold, made one after the other."""
    if sharding is None:
        whole = tuple(slice(0, size) for size in shape)
        return _put(block(whole), None)
    holders: dict[tuple, list[tuple[jax.Device, Index]]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = () if index is None else index
        bounds = tuple((s.start, s.stop) for s in index)
        holders.setdefault(bounds, []).append((device, index))
    arrays = []
    for same in holders.values():
        values = block(same[0][1])
        arrays += [_put(values, device) for device, _ in same]
        del values  # before the next is made
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _put(values: np.ndarray, device: jax.Device | None) -> jax.Array:
    # Copied, since a run donates its parameters, and waited for: many on their way
    # would all be on the host.
    there = jax.block_until_ready(jax.device_put(values, device, may_alias=False))
    gc.collect(0)  # in which JAX lets go of the host's arrays; else it keeps a few
    return there


def _block(
    index: Index, shape: tuple[int, ...], pieces: Sequence[Piece], dtype: np.dtype
) -> np.ndarray:
    """The numbers of a parameter that an index selects."""
    ranges = [range(*s.indices(n)) for s, n in zip(index, shape, strict=True)]
    out = np.empty([len(r) for r in ranges], dtype)
    for part, file, tensor in pieces:
        depth = len(part.index)
        if all(i in r for i, r in zip(part.index, ranges, strict=False)):
            place = tuple(i - r.start for i, r in zip(part.index, ranges, strict=False))
            axes = [slice(r.start, r.stop) for r in ranges[depth:]]
            out[place] = _slice(file.get_slice(tensor), part, axes)
    return out


def _slice(tensor: Any, part: Part, axes: list[slice]) -> np.ndarray:
    """Of a tensor in a file, some axes of a part, as the part has them."""
    rows, *others = axes[::-1] if part.transposed else axes
    rows = slice(rows.start + part.start, rows.stop + part.start)
    found = tensor[(rows, *others)]
    return found.T if part.transposed else found
