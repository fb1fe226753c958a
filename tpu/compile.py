"""Compiles an experiment for TPU chips that are not there, and says what it takes.

python -m tpu.compile --experiment addition --topology v5e:4x4 [--json FILE]

Further flags change numbers of the experiment's config (--num-prompts 512). Needs
libtpu, but no TPU. The experiment is a module of `experiments` with a function
build(config) -> experiments; the last one is compiled. Prompts are split over the
devices along P, the state is copied to each.

XLA counts the body of a loop once, and so do all numbers here except memory: they are
about one of the K training steps, and one token of the sampler's loop.
"""

import collections
import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pkgutil
import re
import sys
import time
from typing import Any

import jax
import rich.console
import rich.table
import tyro
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

import experiments
from rljax import mesh
from rljax.plan import cost as plan
from rljax.program import Program

TOPOLOGIES = ("v5e:1x1", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x8", "v6e:4x4")
_COLLECTIVE = re.compile(
    # What begins in `-start` ends in `-done`, whose shape is the result's alone.
    r"= (?P<shape>.+?) (?P<kind>all-gather|all-reduce|all-to-all|collective-broadcast"
    r"|collective-permute|ragged-all-to-all|reduce-scatter)(-done)?\("
)
_ARRAY = re.compile(r"(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<sizes>[\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile for what."""

    experiment: str
    """Module of `experiments` that has a `Config` and a `build`."""
    topology: str
    """TPU type and shape of the slice, such as v5e:4x4 or v5p:4x4x8."""
    prompts_per_device: int | None = None
    """Prompts per step and device, instead of the number of the experiment."""
    json: pathlib.Path | None = None
    """File to write the report to."""


def main(args: list[str] | None = None) -> None:
    """Parses the command line, compiles, prints the report."""
    # Before anything asks jax for a device: libtpu, once loaded, would look for one.
    jax.config.update("jax_platforms", "cpu")
    options, flags = tyro.cli(
        Options, args=args, description=__doc__, return_unknown_args=True
    )
    try:
        program = find_program(options.experiment, flags)
        devices = find_devices(options.topology)
        prompts = fit_prompts(program.prompts, len(devices), options.prompts_per_device)
        report = {"experiment": options.experiment, "topology": options.topology}
        report |= compile_for(devices, program.fused(), program.state, prompts)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except jax.errors.JaxRuntimeError as error:
        sys.exit(
            f"error: {error}\n(jax {jax.__version__}, libtpu {libtpu_version()}: an"
            " INTERNAL error means that these do not fit; jax[tpu] pins a libtpu.)"
        )
    show(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


def find_program(experiment: str, flags: list[str]) -> Program:
    """What the experiment is going to run.

    Raises:
      ValueError: if there is no such experiment, or it has no `build`.
    """
    names = sorted(m.name for m in pkgutil.iter_modules(experiments.__path__))
    module = None
    if experiment in names:
        module = importlib.import_module(f"experiments.{experiment}")
    if module is None or "build" not in vars(module):
        raise ValueError(
            "--experiment must name a module of experiments/ with a function"
            " build(config) -> list[rljax.experiment.Experiment], got"
            f" {experiment!r}; there are {', '.join(names)}."
        )
    prog = f"python -m tpu.compile --experiment {experiment}"
    return module.build(tyro.cli(module.Config, args=flags, prog=prog))[-1].program()


def find_devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, to compile for and nothing else.

    Raises:
      ValueError: if libtpu is not installed or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "compiling for a TPU needs libtpu, which is not installed; run"
            " pip install 'rljax[tpu]'."
        )
    # What libtpu would otherwise ask a TPU machine's metadata server, with complaints;
    # and no chip is touched, so several processes may do this at once.
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
            f" {', '.join(TOPOLOGIES)}, got {topology!r}: {error}"
        ) from error


def fit_prompts(prompts, num_devices: int, per_device: int | None = None):
    """The prompts' shapes with P divisible by the devices.

    Raises:
      ValueError: if it is not, and `per_device` does not replace it.
    """
    num_prompts = jax.tree.leaves(prompts)[0].shape[1]
    if per_device is not None:
        num_prompts = per_device * num_devices
    if num_prompts % num_devices or num_prompts < 1:
        raise ValueError(
            f"the number of prompts per step must be a multiple of the {num_devices}"
            f" devices, got {num_prompts}; pass --prompts-per-device"
            f" {max(1, round(num_prompts / num_devices))}."
        )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (x.shape[0], num_prompts, *x.shape[2:]), x.dtype
        ),
        prompts,
    )


def compile_for(devices, run, state, prompts) -> dict[str, Any]:
    """Compiles `run` for the devices and reads off what XLA knows of the program.

    Args:
      devices: of `find_devices`; their number divides P.
      run: the jitted loop (state, prompts) -> (state, metrics).
      state, prompts [K, P, ...]: pytrees of jax.ShapeDtypeStruct.

    Returns:
      The report: numbers by name, as JSON takes them; sizes in bytes.
    """
    grid = mesh.make(devices)
    start = time.perf_counter()
    with jax.set_mesh(grid):
        lowered = run.lower(
            _sharded(state, NamedSharding(grid, PartitionSpec())),
            _sharded(prompts, NamedSharding(grid, PartitionSpec(None, mesh.DATA))),
        )
    lower_seconds = time.perf_counter() - start
    with _no_compilation_cache():
        compiled = lowered.compile()
    cost = compiled.cost_analysis()
    num_steps, num_prompts = jax.tree.leaves(prompts)[0].shape[:2]
    return {
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "steps_per_dispatch": num_steps,
        "prompts_per_step": num_prompts,
        "memory_per_device": plan.compiled_memory(compiled),
        "flops_per_device": cost["flops"],
        "bytes_accessed_per_device": cost["bytes accessed"],
        "collectives": collectives(compiled.as_text()),
        "lower_seconds": round(lower_seconds, 2),
        "compile_seconds": round(time.perf_counter() - start - lower_seconds, 2),
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
    }


def libtpu_version() -> str:
    """Version of the installed libtpu."""
    return importlib.metadata.version("libtpu")


@contextlib.contextmanager
def _no_compilation_cache():
    """A program kept on disk can be loaded again only where its devices are."""
    before = jax.config.jax_enable_compilation_cache  # pyrefly: ignore
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # whether it is used is asked only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _sharded(tree, sharding: NamedSharding):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of an optimised HLO module and the bytes of their results.

    >>> collectives("%x = (f32[2,3]{1,0:T(8,128)}, s32[]{:T(128)}) all-reduce(%a, %b)")
    {'all-reduce': {'count': 1, 'bytes': 28}}
    """
    found: dict[str, collections.Counter] = {}
    for line in hlo.splitlines():
        if (match := _COLLECTIVE.search(line)) is not None:
            size = sum(_num_bytes(a) for a in _ARRAY.finditer(match["shape"]))
            counter = found.setdefault(match["kind"], collections.Counter())
            counter.update(count=1, bytes=size)
    return {kind: dict(found[kind]) for kind in sorted(found)}


def _num_bytes(array: re.Match) -> int:
    bits = re.search(
        r"\d+", array["dtype"]
    )  # f8e4m3fn has 8; pred has a byte of its own
    size = 8 if bits is None else int(bits[0])
    for n in filter(None, array["sizes"].split(",")):
        size *= int(n)
    return -(-size // 8)


def show(report: dict[str, Any]) -> None:
    """Prints the report as a table."""
    table = rich.table.Table(
        title=f"{report['experiment']} on {report['devices']} x"
        f" {report['device_kind']} ({report['topology']})"
    )
    table.add_column("")
    table.add_column("per device", justify="right")
    for name, size in report["memory_per_device"].items():
        table.add_row(f"memory: {name.replace('_', ' ')}", f"{size / 2**20:,.1f} MiB")
    table.add_section()
    table.add_row("FLOPs", f"{report['flops_per_device'] / 1e9:,.3f} G")
    accessed = report["bytes_accessed_per_device"] / 2**20
    table.add_row("bytes accessed", f"{accessed:,.1f} MiB")
    for kind, number in report["collectives"].items():
        size = f"{number['bytes'] / 2**20:,.3f} MiB"
        table.add_row(f"{kind}: {number['count']} in the program", size)
    table.add_section()
    table.add_row("compile time", f"{report['compile_seconds']:.1f} s")
    console = rich.console.Console(highlight=False)
    console.print(table)
    console.print(
        f"A dispatch is {report['steps_per_dispatch']} training steps of"
        f" {report['prompts_per_step']} prompts. FLOPs, bytes and collectives count"
        " every loop body once: one training step, one token of the sampler's loop."
    )


if __name__ == "__main__":
    main()
