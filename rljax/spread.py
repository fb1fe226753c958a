"""Spreads the experiments of a run over devices."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import Mesh

from rljax import mesh
from rljax.experiment import Experiment


def on_devices(
    experiments: Sequence[Experiment],
    sizes: Mapping[str, int] | None = None,
    devices: Sequence[jax.Device] | None = None,
    *,
    sampler: Mapping[str, int] | None = None,
) -> list[Experiment]:
    """The experiments with a mesh and a layout; this changes no number.

    The prompts of a microbatch must divide among the devices of all axes but `tensor`.
    If they divide among all devices, only sampling splits heads: see `mesh.Layout`. An
    experiment that has a layout keeps it.

    Args:
      experiments: those of one run.
      sizes: devices along the axes of the mesh. None: all devices, or as many as divide
        the prompts, along `fsdp` if the parameters are large, else along `data`.
      devices: the devices to use; None is all.
      sampler: sizes of a second mesh for experiments that sample `ahead`. It takes the
        first devices of each process, the learner's mesh those after them. None: the
        sampler runs on the learner's mesh.

    Returns:
      Copies of the experiments.

    Raises:
      ValueError: if the sizes do not fit the devices or the experiments.
    """
    devices = jax.devices() if devices is None else list(devices)
    decoder, params = experiments[-1].model.config, experiments[-1].model.shapes()
    limits = mesh.Limits(
        prompts=math.gcd(*map(_prompts_at_once, experiments)),
        heads=decoder.num_kv_heads,
        experts=1 if decoder.experts is None else decoder.experts.num,
    )
    num_bytes = 4 * sum(x.size for x in jax.tree.leaves(params))
    own = None
    if sampler is not None:
        own, devices = _of_sampler(experiments, limits, sampler, devices)
    made = mesh.choose(
        limits,
        sizes,
        num_bytes=num_bytes,
        devices=devices,
        in_order=own is not None,  # parameters move from one mesh to the other
    )
    if made is None and own is not None:  # the default device belongs to the sampler
        made = mesh.make(devices[:1])
    layout = mesh.PLAIN
    if made is not None and limits.prompts % made.size == 0:
        layout = mesh.Layout(update=mesh.ONLY_PROMPTS)

    def spread(one: Experiment) -> Experiment:
        ahead = None if one.ahead is None else one.ahead._replace(mesh=own)
        own_layout = layout if one.layout is None else one.layout
        return dataclasses.replace(one, mesh=made, layout=own_layout, ahead=ahead)

    return list(map(spread, experiments))


def _of_sampler(
    experiments: Sequence[Experiment],
    limits: mesh.Limits,
    sizes: Mapping[str, int],
    devices: list[jax.Device],
) -> tuple[Mesh, list[jax.Device]]:
    """(the sampler's mesh of the first devices, the remaining devices)."""
    num = math.prod(sizes.values())
    if num >= len(devices):
        raise ValueError(
            f"the sampler must leave devices to the learner, got {num} of"
            f" {len(devices)}; give it fewer."
        )
    ahead = [one for one in experiments if one.ahead is not None]
    if not ahead:
        raise ValueError(
            "a sampler on devices of its own must be ahead of the learner, or both"
            " would wait for each other, got experiments that sample and learn by"
            " turns; set `ahead`: with --staleness 1."
        )
    prompts = math.gcd(*(one.batches().tokens.shape[1] for one in ahead))
    mine, rest = _of_each_process(devices, num)
    limits = limits._replace(prompts=prompts)
    made = mesh.choose(limits, sizes, devices=mine, in_order=True)
    return mesh.make(mine) if made is None else made, rest


def _of_each_process(
    devices: list[jax.Device], num: int
) -> tuple[list[jax.Device], list[jax.Device]]:
    """The first devices, as many of each process, and the others.

    So each process has the same parts of both meshes, and copies between its devices.
    """
    owned: dict[int, list[jax.Device]] = {}
    for device in devices:
        owned.setdefault(device.process_index, []).append(device)
    each, rest = divmod(num, len(owned))
    if rest:
        raise ValueError(
            "the sampler must have as many devices of each process, got"
            f" {num} of {len(owned)} processes; take a multiple of {len(owned)}."
        )
    first = [device for own in owned.values() for device in own[:each]]
    return first, [device for own in owned.values() for device in own[each:]]


def _prompts_at_once(experiment: Experiment) -> int:
    """Prompts of a microbatch, as a divisor of the prompts that are sampled."""
    repeats = experiment.learner.repeats
    num_prompts = experiment.batches().tokens.shape[1]
    pieces = repeats.num_minibatches * repeats.num_microbatches
    return math.gcd(num_prompts, max(num_prompts // pieces, 1))
