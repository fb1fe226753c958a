"""Makes meshes, and checks that a run's sizes fit them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from rljax.mesh.arrange import arranged, by_slice
from rljax.mesh.rules import AXES, DATA, EXPERT, FSDP, SEQUENCE, TENSOR

LARGE = 2**30
"""Bytes of float32 parameters beyond which `choose` splits them over the devices."""


class Limits(NamedTuple):
    """Sizes of a run that the axes of a mesh must divide.

    prompts: prompts that are computed at once, in a microbatch.
    heads: key/value heads, which `tensor` splits.
    experts: experts per layer; 1 for a dense model.
    """

    prompts: int
    heads: int = 1
    experts: int = 1

    def broken(self, sizes: dict[str, int]) -> list[str]:
        """A clause for each size that the mesh does not divide."""
        tensor, expert = sizes.get(TENSOR, 1), sizes.get(EXPERT, 1)
        parts = math.prod(sizes.values()) // tensor
        found = {
            f"{self.prompts} prompts of a piece must be a multiple of {parts}, the"
            " devices beside tensor": self.prompts % parts,
            f"{self.heads} key/value heads must be a multiple of tensor={tensor}": (
                self.heads % tensor
            ),
            f"{self.experts} experts must be a multiple of expert={expert}": (
                self.experts % expert
            ),
        }
        return [what for what, rest in found.items() if rest]


def make(
    devices: Sequence | None = None, *, in_order: bool = False, **sizes: int
) -> Mesh:
    """A mesh of the given sizes.

    Args:
      devices: to take the mesh's devices from, in order; None: `jax.devices()`.
      in_order: whether the mesh lists them in this order, as `move` needs it between
        meshes of several processes. Else neighbours in the mesh are close on a TPU.
      **sizes: devices along `data`, `fsdp`, `expert` and `tensor`. An axis that is not
        named has 1, except that `data` takes the remaining devices.

    Raises:
      ValueError: if an axis is unknown, if the sizes do not divide the devices, or as
        `arranged`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _complete(sizes, len(devices))
    num = math.prod(sizes.values())
    # Axes of size 1, except `data`, are dropped to keep printed meshes short.
    sizes = {a: n for a, n in sizes.items() if n > 1 or a == DATA}
    array = arranged(sizes, devices[:num], in_order=in_order)
    return Mesh(array, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def parse(text: str) -> dict[str, int]:
    """`data=2,fsdp=4` -> {"data": 2, "fsdp": 4}.

    Raises:
      ValueError: if the text is not of this form.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = part.strip().partition("=")
        _refuse_sequence(axis)
        good = axis in AXES and axis not in sizes
        if not (good and number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(
                f"a mesh must be written as data=2,fsdp=4,tensor=2, with each of the"
                f" axes {', '.join(AXES)} at most once and sizes of at least 1, got"
                f" {text!r}; correct {part.strip()!r}."
            )
        sizes[axis] = int(number)
    return sizes


def choose(
    limits: Limits,
    sizes: Mapping[str, int] | None = None,
    *,
    num_bytes: int = 0,
    devices: Sequence | None = None,
    in_order: bool = False,
) -> Mesh | None:
    """The mesh for a run, or None for a single device.

    Args:
      limits: sizes of the run that the mesh must divide.
      sizes: devices along the axes, as for `make`. None: the largest number of devices
        that divides the prompts, along `fsdp` if the parameters exceed `LARGE`, else
        along `data`. Several slices of TPUs are along `data`.
      num_bytes: of the parameters in float32.
      devices: to choose from; None: `jax.devices()`.
      in_order: as for `make`.

    Raises:
      ValueError: if `sizes` do not divide the devices, prompts, heads or experts; the
        message names the nearest sizes that do. If by default a process would have no
        device.
    """
    devices = jax.devices() if devices is None else list(devices)
    if sizes is None:
        num = next(n for n in _divisors(len(devices))[::-1] if limits.prompts % n == 0)
        _require_all_processes(devices[:num], devices, limits.prompts)
        slices = len(by_slice(devices[:num]))
        sizes = {DATA: num}
        if num_bytes > LARGE:
            sizes = {DATA: slices, FSDP: num // slices}
    sizes = _complete(sizes, len(devices), limits)
    if broken := limits.broken(sizes):
        near = _nearest(sizes, len(devices), limits)
        raise ValueError(f"{'; '.join(broken)}, got {_text(sizes)}; take {near}.")
    if math.prod(sizes.values()) == 1:
        return None
    return make(devices, in_order=in_order, **sizes)


def _require_all_processes(chosen: list, devices: list, prompts: int) -> None:
    """Raises ValueError if a process would have no device in the mesh."""
    count = len({d.process_index for d in devices})
    if len({d.process_index for d in chosen}) < count:
        num = len(devices)
        raise ValueError(
            f"the prompts of a piece must be a multiple of the {num} devices, so that"
            f" each of the {count} processes has some, got {prompts}; take"
            f" {-(-prompts // num) * num}."
        )


def _complete(
    sizes: Mapping[str, int], num_devices: int, limits: Limits | None = None
) -> dict[str, int]:
    """Sizes of all axes, in order; `data` takes the rest if it is not named."""
    for axis in sizes:
        _refuse_sequence(axis)
    if unknown := set(sizes) - set(AXES):
        raise ValueError(
            f"the axes of a mesh must be of {', '.join(AXES)}, got"
            f" {', '.join(sorted(unknown))}; rename them."
        )
    named = math.prod(sizes.values())
    if num_devices % named == 0:
        rest = num_devices // named
        return {a: sizes.get(a, rest if a == DATA else 1) for a in AXES}
    full = {a: sizes.get(a, 1) for a in AXES}
    near = _nearest(full, num_devices, limits or Limits(0, 0, 0))
    raise ValueError(
        f"a mesh must divide the {num_devices} devices, got {_text(full)}, of"
        f" {named} devices; take {near}."
    )


def _refuse_sequence(axis: str) -> None:
    if axis == SEQUENCE:
        raise ValueError(
            f"a mesh must have the axes {', '.join(AXES)}, got {SEQUENCE}: attention"
            " needs all tokens of a sample on one device. To split activations between"
            " layers along tokens, take tensor and"
            " Rules(rows=('data', 'fsdp', 'tensor')); for longer samples, take"
            " attention in blocks and more microbatches."
        )


def _nearest(wanted: dict[str, int], num_devices: int, limits: Limits) -> str:
    """The fitting mesh with the most devices; among these, the nearest to `wanted`."""

    def distance(sizes):
        factors = (math.log(sizes[a] / wanted[a]) for a in AXES)
        return -math.prod(sizes.values()), sum(map(abs, factors))

    free = {a for a in AXES if wanted[a] > 1} | {DATA}
    axes = [_divisors(num_devices) if a in free else [1] for a in AXES]
    all_sizes = [dict(zip(AXES, n, strict=True)) for n in itertools.product(*axes)]
    fitting = [
        sizes
        for sizes in all_sizes
        if num_devices % math.prod(sizes.values()) == 0 and not limits.broken(sizes)
    ]
    return _text(min(fitting, key=distance))  # one device always fits


def text(mesh: Mesh | None) -> str:
    """The mesh in the form that `parse` reads."""
    return _text({} if mesh is None else dict(mesh.shape))


def _text(sizes: dict[str, int]) -> str:
    named = [f"{axis}={n}" for axis, n in sizes.items() if n > 1]
    return ",".join(named) or f"{DATA}=1"


def _divisors(num: int) -> list[int]:
    return [n for n in range(1, num + 1) if num % n == 0]
