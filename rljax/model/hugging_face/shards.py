"""Reads parameters from files directly to the devices that hold them.

The host assembles one device's shard of a parameter at a time from slices of the files'
tensors, in a buffer that is reused. It holds this buffer and one slice, never a whole
model. Nothing is compiled.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from rljax.model.hugging_face.tensors import Part

Index = tuple[slice, ...]


class Piece(NamedTuple):
    """A part of a parameter, the open file that holds it, and the tensor's name."""

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
    """Reads all parameters.

    Args:
      shapes: path -> shape of the parameter.
      where: path -> its sharding; None is the default device.
      parts: tensor name -> the parts of parameters that it holds.
      stored: tensor name -> the open safetensors file that holds it.
      dtype: of the parameters, whatever the files hold.

    Returns:
      Path -> parameter.
    """
    pieces: dict[str, list[Piece]] = {path: [] for path in shapes}
    for name, stacked in parts.items():
        for part in stacked:
            pieces[part.path].append(Piece(part, stored[name], name))
    sizes = [
        math.prod(_shard_shape(x.shape, where[path])) for path, x in shapes.items()
    ]
    # The buffer skips one number to be unaligned: then no device can adopt its memory
    # without a copy.
    memory = np.empty(1 + max(sizes), dtype)[1:]

    def parameter(path):
        shape = shapes[path].shape

        def put(index, devices):
            values = _block(index, shape, pieces[path], memory)
            return [_copied(values, device) for device in devices]

        return _placed(shape, where[path], put)

    return {path: parameter(path) for path in shapes}


def _copied(values: np.ndarray, device: jax.Device | None) -> jax.Array:
    """`values` on a device, never in the memory of `values` itself."""
    there = jax.block_until_ready(jax.device_put(values, device))
    on_host = next(iter(there.devices())).platform == "cpu"
    if on_host and there.unsafe_buffer_pointer() == values.ctypes.data:
        return jax.device_put(values.copy(), device)
    return there


def _shard_shape(shape: tuple[int, ...], sharding: Sharding | None) -> tuple[int, ...]:
    """The shape of one device's shard."""
    return shape if sharding is None else sharding.shard_shape(shape)


def _placed(
    shape: tuple[int, ...],
    sharding: Sharding | None,
    put: Callable[[Index, list], list[jax.Array]],
) -> jax.Array:
    """The array made of its shards; `put` copies one shard to some devices."""
    if sharding is None:
        return put(tuple(slice(0, size) for size in shape), [None])[0]
    holders: dict[tuple, tuple[Index, list]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = () if index is None else index
        bounds = tuple((s.start, s.stop) for s in index)
        holders.setdefault(bounds, (index, []))[1].append(device)
    arrays = [x for holder in holders.values() for x in put(*holder)]
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _block(
    index: Index, shape: tuple[int, ...], pieces: Sequence[Piece], memory: np.ndarray
) -> np.ndarray:
    """The shard of a parameter that `index` selects, at the start of the buffer."""
    ranges = [range(*s.indices(n)) for s, n in zip(index, shape, strict=True)]
    size = [len(r) for r in ranges]
    out = memory[: math.prod(size)].reshape(size)
    for part, file, tensor in pieces:
        depth = len(part.index)
        if all(i in r for i, r in zip(part.index, ranges, strict=False)):
            place = tuple(i - r.start for i, r in zip(part.index, ranges, strict=False))
            axes = [slice(r.start, r.stop) for r in ranges[depth:]]
            out[place] = _slice(file.get_slice(tensor), part, axes)
    return out


def _slice(tensor: Any, part: Part, axes: list[slice]) -> np.ndarray:
    """A slice of a part, read from its tensor, in the decoder's orientation."""
    rows, *others = axes[::-1] if part.transposed else axes
    rows = slice(rows.start + part.start, rows.stop + part.start)
    found = tensor[(rows, *others)]
    return found.T if part.transposed else found
