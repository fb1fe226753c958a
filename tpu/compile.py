"""Compiles an experiment for TPUs without having any, and reports memory and time.

python -m tpu.compile --experiment addition --topology v5e:4x4 [--json FILE]
python -m tpu.compile --experiment train --model qwen3-8b --topology v5p:2x2x4 \\
    --mesh fsdp=16 --prompt-tokens 2048 --max-tokens 8192 --num-prompts 16

Further flags change numbers of the experiment's config (--num-prompts 512). The
experiment is a module of `experiments` with a function build(config) -> experiments, of
which the last one is compiled. This needs libtpu, but no TPU. For GPUs (h100:8) it
needs jax's CUDA plugin, but no GPU (see `tpu.gpu`). Without the plugin, or with
--arithmetic, nothing is compiled, and the report is an estimate by arithmetic.

XLA's FLOPs and bytes accessed count the body of every loop once: one of the K training
steps, and one token of the sampler's loop. Collectives are counted as often as they
run; in the sampler's loop that is an upper bound.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
from typing import Any

import jax
import tyro
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache

from rljax import mesh
from rljax.plan import cost as plan
from rljax.plan import hlo
from rljax.program import Program
from tpu import chips, gpu, memory, report, roofline, subject


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile, and for which slice."""

    experiment: str = "train"
    """Module of `experiments` with a `Config` and a `build`."""
    topology: str
    """Kind and shape of the slice, such as v5e:4x4 or v5p:4x4x8; h100:8 for GPUs."""
    mesh: str | None = None
    """Devices along the axes of the mesh, such as data=2,fsdp=4,tensor=2. Default: all
    along data, or along fsdp for large models."""
    model: str | None = None
    """A known model that replaces the experiment's; for `train` only."""
    prompt_tokens: int | None = None
    """Tokens per prompt; replaces the experiment's."""
    prompts_per_device: int | None = None
    """Prompts per step and device; replaces the experiment's number."""
    arithmetic: bool = False
    """Compile nothing; estimate by arithmetic."""
    json: pathlib.Path | None = None
    """File to write the report to."""


def main(args: list[str] | None = None) -> None:
    """Parses the command line, compiles, prints the report."""
    # Set first: libtpu, once loaded, would look for a device.
    jax.config.update("jax_platforms", "cpu")
    options, flags = tyro.cli(
        Options, args=args, description=__doc__, return_unknown_args=True
    )
    try:
        found = plan_for(options, flags)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        sys.exit(
            f"error: {error}\n(jax {jax.__version__}, libtpu {libtpu_version()}: an"
            " INTERNAL error means that these versions do not match; jax[tpu] pins a"
            " libtpu.)"
        )
    report.show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if not found["fits"]:
        sys.exit(f"error: {found['refusal']}")


def plan_for(options: Options, flags: list[str]) -> dict[str, Any]:
    """The report on an experiment.

    Args:
      options: what to compile, and for which slice.
      flags: of the experiment's config.

    Returns:
      Numbers by name, JSON-able; sizes in bytes. If the step does not fit, `refusal`
      says why, and there may be no numbers of the compiler.

    Raises:
      ValueError: if the experiment or the slice is unknown, or they do not match.
    """
    place = chips.parse(options.topology)
    devices = None
    if not options.arithmetic:
        num = place.num_chips
        devices = find_devices(str(place)) if place.is_tpu else gpu.devices(num)
    compiles = devices is not None
    per_device = options.prompts_per_device
    made = subject.spread(
        subject.find_experiment(options.experiment, flags, options.model),
        stand_ins(place.num_chips) if devices is None else devices,
        sizes=options.mesh,
        num_prompts=None if per_device is None else per_device * place.num_chips,
        prompt_tokens=options.prompt_tokens,
    )
    program = made.program()
    sizes, stored = program.sizes(), memory.of_program(program)
    assert made.mesh is not None  # `subject.spread` makes one even of a single chip
    axes, capacity = dict(made.mesh.shape), place.chip.hbm_gib * memory.GIB
    arithmetic = memory.by_arithmetic(sizes, axes, stored)
    compiled: dict[str, Any] = {}
    needed, how = arithmetic.peak, "by arithmetic"
    if compiles and arithmetic.state > capacity:
        needed, how = arithmetic.state, "for the state alone, before it was compiled"
    elif compiles:
        compiled, how = _compiled(program)
        needed = compiled["memory_per_device"]["peak"] if compiled else math.inf
    fits = bool(needed <= capacity)
    refusal = "" if fits else memory.refusal(sizes, stored, place, needed, how)
    return {
        "experiment": options.experiment,
        "model": options.model,
        "topology": options.topology,
        "mesh": mesh.text(made.mesh),
        "devices": place.num_chips,
        "hbm_per_device": capacity,
        "fits": fits,
        "refusal": refusal,
        "steps_per_dispatch": program.prompts.tokens.shape[0],
        **report.sizes_of(sizes, stored),
        "memory_by_arithmetic": {**arithmetic._asdict(), "peak": arithmetic.peak},
        **compiled,
        **report.times(sizes, program, place, axes, compiled),
    }


def _compiled(program: Program) -> tuple[dict[str, Any], str]:
    """The compiler's numbers, and how the memory is known.

    If the compiler runs out of memory, there are no numbers; the text is its message.
    """
    try:
        return compile_on(program), "the compiler's peak"
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {}, f"the compiler gives up: {str(error)[:2000]}"


def stand_ins(num: int) -> list[jax.Device]:
    """CPU devices in place of chips, for a mesh on which nothing runs.

    Raises:
      ValueError: if jax was initialised with fewer devices.
    """
    with contextlib.suppress(RuntimeError):  # raised if jax is initialised already
        jax.config.update("jax_num_cpu_devices", num)
    devices = jax.devices("cpu")
    if len(devices) < num:
        raise ValueError(
            f"jax must be initialised with {num} CPU devices, got {len(devices)}; call"
            " this in a process of its own."
        )
    return devices[:num]


def find_devices(topology: str) -> list[jax.Device]:
    """Descriptions of the devices of a TPU slice, for which programs can be compiled.

    Raises:
      ValueError: if libtpu is not installed or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs libtpu, which is not installed; run"
            " pip install 'rljax[tpu]'."
        )
    # libtpu would otherwise ask the metadata server of a TPU machine, and log failures.
    # No chip is used, so several processes may load libtpu at once.
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # A machine of one chip is smaller than the host that libtpu assumes.
    host = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    try:
        return topologies.get_topology_desc(topology, "tpu", **host).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            "--topology must be a TPU type and shape that libtpu knows, such as"
            f" {', '.join(chips.known())}, got {topology!r}: {error}"
        ) from error


def compile_on(program: Program) -> dict[str, Any]:
    """Compiles a program for its mesh and reports what XLA knows of it.

    Args:
      program: on a mesh of devices of `find_devices`, which divides its prompts.

    Returns:
      Numbers by name, JSON-able; sizes in bytes.
    """
    place = program.place
    assert place is not None  # `subject.spread` makes one even of a single chip
    start = time.perf_counter()
    lowered = program.lower()
    lower_seconds = time.perf_counter() - start
    on_gpu = place.devices.flat[0].platform == "gpu"
    with _no_compilation_cache():
        compiled = lowered.compile(gpu.OPTIONS if on_gpu else None)
    cost: Any = compiled.cost_analysis() or {}  # None for descriptions of GPUs
    text = compiled.as_text() or ""
    found = hlo.collectives(text)
    num_steps = program.prompts.tokens.shape[0]
    return {
        "device_kind": place.devices.flat[0].device_kind,
        "memory_per_device": _memory(compiled),
        "flops_per_device": cost.get("flops", 0.0),
        "bytes_accessed_per_device": cost.get("bytes accessed", 0.0),
        "collectives": hlo.by_kind(found),
        "moved_per_step": {
            phase: moved._asdict()
            for phase, moved in roofline.received(found, place.size, num_steps).items()
        },
        "copied_to_every_device": mesh.copied(program.state, place, program.layout),
        "largest_arrays": largest(text),
        "lower_seconds": round(lower_seconds, 2),
        "compile_seconds": round(time.perf_counter() - start - lower_seconds, 2),
        "jax": jax.__version__,
        "compiler": gpu.compiler() if on_gpu else f"libtpu {libtpu_version()}",
    }


def _memory(compiled) -> dict[str, int]:
    """Bytes on a device, by kind.

    XLA gives no peak for a GPU. Its temporaries are one allocation, so the peak is the
    sum of all parts.
    """
    sizes = plan.compiled_memory(compiled)
    peak = compiled.memory_analysis().peak_memory_in_bytes
    parts = sizes["arguments"] + sizes["outputs"] + sizes["temporaries"]
    return sizes | {"peak": peak or parts - sizes["outputs_in_arguments"]}


def largest(text: str, num: int = 8) -> dict[str, int]:
    """Shape -> bytes of the `num` largest arrays of a program on one device."""
    found = hlo.arrays(text, 2**20)
    return dict(sorted(found.items(), key=lambda one: -one[1])[:num])


def libtpu_version() -> str:
    """Version of the installed libtpu."""
    return importlib.metadata.version("libtpu")


@contextlib.contextmanager
def _no_compilation_cache():
    """A context without the cache: a cached program cannot be loaded without chips."""
    before = jax.config.jax_enable_compilation_cache  # pyrefly: ignore
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax reads the setting only once per reset
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


if __name__ == "__main__":
    main()
