"""Compiles an experiment for TPU chips that are not there, and says what it takes.

python -m tpu.compile --experiment addition --topology v5e:4x4 [--json FILE]
python -m tpu.compile --experiment train --model qwen3-8b --topology v5p:2x2x4 \\
    --mesh fsdp=4,tensor=4 --prompt-tokens 2048 --max-tokens 8192 --num-prompts 16

Further flags change numbers of the experiment's config (--num-prompts 512). Needs
libtpu, but no TPU. The experiment is a module of `experiments` with a function
build(config) -> experiments; the last one is compiled.

XLA counts the body of a loop once, and so do FLOPs and bytes accessed here: they are
about one of the K training steps, and one token of the sampler's loop. Collectives are
counted as often as they run, in the sampler's loop at most.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import pkgutil
import sys
import time
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
import tyro
from jax.experimental import topologies
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

import experiments
from experiments import assemble, formats, problems, train
from rljax import mesh
from rljax.experiment import Experiment, on_devices
from rljax.model import shapes
from rljax.plan import cost as plan
from rljax.plan import hlo
from rljax.program import Program
from rljax.run.phase import Stream
from rljax.types import Prompts

TOPOLOGIES = ("v5e:1x1", "v5e:4x4", "v5e:16x16", "v5p:2x2x1", "v5p:4x4x8", "v6e:4x4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to compile for what."""

    experiment: str
    """Module of `experiments` that has a `Config` and a `build`."""
    topology: str
    """TPU type and shape of the slice, such as v5e:4x4 or v5p:4x4x8."""
    mesh: str | None = None
    """Devices along the axes of the mesh, data=2,fsdp=4,tensor=2; by default all along
    data, or fsdp for large models."""
    model: str | None = None
    """Shape of a known model instead of the experiment's, for `train`."""
    prompt_tokens: int | None = None
    """Tokens of a prompt, instead of the experiment's."""
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
        devices = find_devices(options.topology)
        made = find_experiment(options.experiment, flags, options.model)
        made = spread(made, devices, options)
        report = {
            "experiment": options.experiment,
            "model": options.model,
            "topology": options.topology,
            "mesh": mesh.text(made.mesh),
        }
        report |= compile_on(made.mesh, made.layout, made.program())
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


def find_experiment(
    experiment: str, flags: list[str], shape: str | None = None
) -> Experiment:
    """The experiment, or its last stage.

    Args:
      flags: of its configuration.
      shape: a known model instead of its own, for `train`.

    Raises:
      ValueError: if there is no such experiment or model, or it has no `build`.
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
    if shape is None:
        return module.build(tyro.cli(module.Config, args=flags, prog=prog))[-1]
    decoder = shapes.named(shape)
    if module is not train:
        raise ValueError(
            f"--model {shape} must go with --experiment train, got {experiment}; others"
            " have models of their own."
        )
    few = train.Config(
        num_prompts=16, num_validation=8, num_test=8, dtype="bfloat16", remat="layers"
    )
    config = tyro.cli(train.Config, default=few, args=flags, prog=prog)
    small, task = problems.build(config, None)
    made = formats.new(config, decoder, small.tokenizer)
    return assemble.experiment(config, made, task)


@dataclasses.dataclass(frozen=True)
class _Resized:
    """A stream of other sizes, whose values nobody reads: P prompts of S tokens."""

    stream: Stream
    num_prompts: int | None
    num_tokens: int | None

    def __next__(self) -> Prompts:
        batch = next(self.stream)
        K, P, S = batch.tokens.shape
        rows = np.arange(P if self.num_prompts is None else self.num_prompts) % P
        batch = jax.tree.map(lambda x: x[:, rows], batch)
        tokens = np.zeros((K, len(rows), self.num_tokens or S), batch.tokens.dtype)
        return batch.replace(tokens=tokens)

    def get_state(self):
        return self.stream.get_state()

    def set_state(self, state):
        self.stream.set_state(state)


def spread(made: Experiment, devices: list[jax.Device], options: Options) -> Experiment:
    """The experiment on a mesh of all the devices, its prompts of the sizes asked for.

    Raises:
      ValueError: if the mesh does not divide the devices, prompts or heads.
    """
    per_device = options.prompts_per_device
    num_prompts = None if per_device is None else per_device * len(devices)
    stream = _Resized(made.prompts, num_prompts, options.prompt_tokens)
    made = dataclasses.replace(made, prompts=stream)
    if len(devices) == 1:
        return dataclasses.replace(made, mesh=mesh.make(devices))
    sizes = {} if options.mesh is None else mesh.parse(options.mesh)
    if options.mesh is None:
        num_bytes = plan.num_bytes(made.model.shapes())
        sizes = {mesh.FSDP if num_bytes > mesh.LARGE else mesh.DATA: len(devices)}
    return on_devices([made], sizes, devices)[0]


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


def compile_on(
    place: Mesh | None, layout: mesh.Layout, program: Program
) -> dict[str, Any]:
    """Compiles a program for a mesh and reads off what XLA knows of it.

    Args:
      place: a mesh of devices of `find_devices`; it divides the prompts.

    Returns:
      The report: numbers by name, as JSON takes them; sizes in bytes.
    """
    assert place is not None  # `spread` makes one even of a single chip
    state = _sharded(program.state, mesh.state_shardings(program.state, place, layout))
    where = mesh.prompt_sharding(place, axis=1, layout=layout)
    prompts = _sharded(program.prompts, jax.tree.map(lambda _: where, program.prompts))
    start = time.perf_counter()
    with mesh.using(place, layout):
        lowered = program.fused().lower(state, prompts)
    lower_seconds = time.perf_counter() - start
    with _no_compilation_cache():
        compiled = lowered.compile()
    cost: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    num_steps, num_prompts = program.prompts.tokens.shape[:2]
    return {
        "device_kind": place.devices.flat[0].device_kind,
        "devices": place.size,
        "steps_per_dispatch": num_steps,
        "prompts_per_step": num_prompts,
        "memory_per_device": plan.compiled_memory(compiled)
        | {"peak": memory.peak_memory_in_bytes},
        "flops_per_device": cost["flops"],
        "bytes_accessed_per_device": cost["bytes accessed"],
        "collectives": hlo.by_kind(hlo.collectives(text)),
        "copied_to_every_device": mesh.copied(program.state, place, layout),
        "largest_arrays": largest(text),
        "lower_seconds": round(lower_seconds, 2),
        "compile_seconds": round(time.perf_counter() - start - lower_seconds, 2),
        "jax": jax.__version__,
        "libtpu": libtpu_version(),
    }


def largest(text: str, num: int = 8) -> dict[str, int]:
    """The largest arrays of a program on one device, bytes by shape."""
    found = hlo.arrays(text, 2**20)
    return dict(sorted(found.items(), key=lambda one: -one[1])[:num])


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


def _sharded(tree, shardings):
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        tree,
        shardings,
    )


def show(report: dict[str, Any]) -> None:
    """Prints the report as a table."""
    table = rich.table.Table(
        title=f"{report['model'] or report['experiment']} on {report['devices']} x"
        f" {report['device_kind']} ({report['topology']}, {report['mesh']})"
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
        table.add_row(f"{kind}: {number['count']} per dispatch", size)
    table.add_section()
    for shape, size in report["largest_arrays"].items():
        table.add_row(f"array {shape}", f"{size / 2**20:,.1f} MiB")
    table.add_section()
    table.add_row("compile time", f"{report['compile_seconds']:.1f} s")
    console = rich.console.Console(highlight=False)
    console.print(table)
    console.print(
        f"A dispatch is {report['steps_per_dispatch']} training steps of"
        f" {report['prompts_per_step']} prompts. FLOPs and bytes accessed count every"
        " loop body once: one training step, one token of the sampler's loop."
        " Collectives count each turn, up to the longest completion. What a chip must"
        " hold is the peak."
    )


if __name__ == "__main__":
    main()
