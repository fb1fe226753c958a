"""Lays devices out as the array of a mesh, so that close ones are neighbours in it."""

import math
from collections.abc import Mapping

import numpy as np
from jax.experimental import mesh_utils

from rljax.mesh.rules import DATA


def arranged(sizes: Mapping[str, int], devices: list, *, in_order: bool) -> np.ndarray:
    """The devices as an array with these sizes.

    Several slices of TPUs lie along `data`: then only gradients cross the network
    between them. Along other axes weights would, in every layer.

    Args:
      sizes: mesh axis -> devices along it; `data` first.
      devices: as many.
      in_order: whether to keep their order within a slice.

    Raises:
      ValueError: if `data` is no multiple of the slices, or the chips of a slice are
        not a box in it.
    """
    slices = by_slice(devices)
    for chips in slices:
        if not _are_box(chips):
            raise ValueError(
                f"the {len(chips)} TPU chips of a mesh must fill a box of the slice, as"
                f" programs are compiled for boxes, got {[d.coords for d in chips]};"
                " take all chips, or for a sampler on some of each host's chips a slice"
                " whose hosts lie in a row, such as v5p:2x2x4."
            )
    shape = tuple(sizes.values())
    num = len(slices)
    if len({len(chips) for chips in slices}) > 1 or sizes[DATA] % num:
        raise ValueError(
            f"data must be a multiple of the {num} slices, of which a mesh must have as"
            f" many chips each, got data={sizes[DATA]} and {[*map(len, slices)]} chips;"
            f" take data={num}."
        )
    of_slice = (shape[0] // num, *shape[1:])

    def laid(chips):
        if in_order:
            return np.array(chips).reshape(of_slice)
        # `jax.make_mesh` splits no axis of a slice: fsdp=8,tensor=2 fails on v6e:4x4.
        return mesh_utils.create_device_mesh(
            of_slice, chips, allow_split_physical_axes=True
        )

    return np.concatenate([laid(chips) for chips in slices])


def by_slice(devices: list) -> list[list]:
    """The devices of each slice of TPUs; other devices are in one."""
    if devices[0].platform != "tpu":
        return [devices]
    found: dict[int, list] = {}
    for device in devices:
        found.setdefault(getattr(device, "slice_index", 0), []).append(device)
    return list(found.values())


def _are_box(chips: list) -> bool:
    """Whether the chips of a slice fill a box; True for devices that are no TPUs."""
    if chips[0].platform != "tpu":
        return True
    places = np.array([(*d.coords, d.core_on_chip) for d in chips])
    return math.prod(np.ptp(places, axis=0) + 1) == len(chips)
