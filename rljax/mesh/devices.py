"""Which devices make a mesh, and what does not fit on one."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax.sharding import AxisType, Mesh

from rljax.mesh.rules import AXES, DATA, EXPERT, FSDP, SEQUENCE, TENSOR

LARGE = 2**30
"""Bytes of float32 parameters beyond which `choose` splits them over the devices."""


class Limits(NamedTuple):
    """What the axes of a mesh must divide.

    prompts: of each piece that is computed at once.
    heads: key/value heads, which `tensor` splits.
    experts: 1 without any.
    """

    prompts: int
    heads: int = 1
    experts: int = 1

    def broken(self, sizes: dict[str, int]) -> list[str]:
        """In words, what does not divide."""
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


def make(devices: Sequence | None = None, **sizes: int) -> Mesh:
    """A mesh of all devices, or the first of the given ones.

    Args:
      devices: all there are, by default.
      **sizes: devices along `data`, `fsdp`, `expert` and `tensor`; 1 where not named.
        Without `data` it takes the rest.

    Raises:
      ValueError: if an axis is unknown, or the sizes do not divide the devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = _complete(sizes, len(devices))
    num = math.prod(sizes.values())
    # Axes of one device, but for `data`, would only lengthen what is printed.
    sizes = {a: n for a, n in sizes.items() if n > 1 or a == DATA}
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices[:num],
    )


def parse(text: str) -> dict[str, int]:
    """`data=2,fsdp=4` -> {"data": 2, "fsdp": 4}.

    Raises:
      ValueError: if it is no such text.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, number = part.strip().partition("=")
        _refuse_sequence(axis)
        good = axis in AXES and axis not in sizes
        if not (good and number.isascii() and number.isdigit() and int(number) > 0):
            raise ValueError(
                f"a mesh must be written as data=2,fsdp=4,tensor=2, of the axes"
                f" {', '.join(AXES)}, each once and at least 1, got {text!r};"
                f" {part.strip()!r} is none."
            )
        sizes[axis] = int(number)
    return sizes


def choose(
    limits: Limits,
    sizes: Mapping[str, int] | None = None,
    *,
    num_bytes: int = 0,
    devices: Sequence | None = None,
) -> Mesh | None:
    """The mesh for a run, None for one device.

    Args:
      limits: what it must divide.
      sizes: those asked for. None takes as many devices as divide the prompts: along
        `fsdp` if parameters are large, else along `data`.
      num_bytes: of the parameters in float32.

    Raises:
      ValueError: if the sizes asked for divide not the devices, prompts, heads or
        experts, with the nearest that do.
    """
    devices = jax.devices() if devices is None else list(devices)
    if sizes is None:
        num = next(n for n in _divisors(len(devices))[::-1] if limits.prompts % n == 0)
        sizes = {DATA: 1, FSDP: num} if num_bytes > LARGE else {DATA: num}
    sizes = _complete(sizes, len(devices), limits)
    if broken := limits.broken(sizes):
        near = _nearest(sizes, len(devices), limits)
        raise ValueError(f"{'; '.join(broken)}, got {_text(sizes)}; take {near}.")
    if math.prod(sizes.values()) == 1:
        return None
    return make(devices, **sizes)


def _complete(
    sizes: Mapping[str, int], num_devices: int, limits: Limits | None = None
) -> dict[str, int]:
    """All axes in order; `data` takes the rest if it is not named."""
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
            " needs the whole of a sample's tokens on its device. What lies between"
            " layers is split along tokens by tensor, with"
            " Rules(rows=('data', 'fsdp', 'tensor')); longer samples fit with"
            " attention in blocks and more microbatches."
        )


def _nearest(wanted: dict[str, int], num_devices: int, limits: Limits) -> str:
    """Of the meshes that fit and have most devices the one nearest to the wanted."""

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
    """As `--mesh` would say it."""
    return _text({} if mesh is None else dict(mesh.shape))


def _text(sizes: dict[str, int]) -> str:
    named = [f"{axis}={n}" for axis, n in sizes.items() if n > 1]
    return ",".join(named) or f"{DATA}=1"


def _divisors(num: int) -> list[int]:
    return [n for n in range(1, num + 1) if num % n == 0]
