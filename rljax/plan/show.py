"""`--plan`: prints the cost of an experiment without running it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import rich.console
import rich.table

from rljax.plan import cost, machine
from rljax.plan import peak as peaks
from rljax.plan.peak import Peak
from rljax.program import Program, Sizes

# Numbers of a config that save memory when they are raised, and when they are lowered.
_RAISED = ("num_microbatches", "num_group_parts")
_LOWERED = ("num_prompts", "num_samples", "max_tokens")
_PARTS = {  # field of `cost.Memory` -> its label
    "parameters": "parameters",
    "optimizer": "optimiser state",
    "rest": "rest of the state, prompts",
    "outputs": "metrics",
    "temporaries": "temporaries of the program",
    "code": "code",
}
_WITHIN = {  # the same, for parts of the temporaries
    "gradients": "gradients",
    "cache": "keys and values of the sampler",
    "logits": "logits held at once",
}


def show_plan(
    program: Callable[[Any], Program],
    config: Any,
    *,
    free: int | None = None,
) -> cost.Plan:
    """Prints the cost of a training step, and the peak memory of the run, on a device.

    Args:
      program: config -> the program to plan.
      config: of the experiment.
      free: bytes that the run may take; None: the free memory of the first device.

    Raises:
      ValueError: if the memory does not suffice; the message names what would fit.
    """
    built = program(config)
    compiled = built.compile()
    sizes = built.sizes()
    rates = measure_rates(sizes)
    if _on_host():  # all CPU devices share the cores
        rates = cost.Rates(*(rate / built.num_devices for rate in rates))
    found = cost.plan_step(built, sizes, compiled, rates)
    free = machine.free_memory(jax.devices()[0]) if free is None else free
    console = rich.console.Console(highlight=False)
    largest = peaks.peak(built, found.memory, on_host=_on_host())
    for table in (
        work_table(found),
        memory_table(found.memory, found.devices),
        peak_table(largest, free),
    ):
        console.print(table)
    console.print(summary(found))
    if largest.wanted > free:
        raise ValueError(refusal(program, config, largest, free))
    return found


def _on_host() -> bool:
    return jax.default_backend() == "cpu"


def measure_rates(sizes: Sizes, seconds: float = 0.2) -> cost.Rates:
    """Measures the rates at the program's shapes, in about 5 times `seconds`."""
    training, decoding = cost.matmul_shapes(sizes)
    dtype = sizes.decoder.dtype
    return cost.Rates(
        training=machine.matmul_flops_per_s(*training, dtype, seconds),
        decoding=machine.matmul_flops_per_s(*decoding, dtype, seconds),
        memory=machine.bandwidth(2**27, seconds),
    )


def work_table(found: cost.Plan) -> rich.table.Table:
    """The table of arithmetic and time of a step."""
    s = found.sizes
    table = rich.table.Table(
        title=f"A training step: {s.num_prompts} prompts of {s.prompt_tokens} x"
        f" {s.num_samples} samples x {s.max_tokens} tokens{_each(found.devices)}"
    )
    table.add_column("")
    for name in ("GFLOP, lower bound", "GFLOP, traced", "ms, lower bound"):
        table.add_column(name, justify="right")
    rows = zip(found.arithmetic, found.traced, found.seconds, strict=True)
    for name, (least, traced, seconds) in zip(cost.Flops._fields, rows, strict=True):
        table.add_row(name, *_work(least, traced, seconds))
    table.add_section()
    table.add_row(
        "in all", *_work(sum(found.arithmetic), sum(found.traced), sum(found.seconds))
    )
    return table


def _each(devices: int) -> str:
    return "" if devices == 1 else f", each of {devices} devices"


def _work(least, traced, seconds):
    return f"{least / 1e9:,.3f}", f"{traced / 1e9:,.3f}", f"{1e3 * seconds:,.2f}"


def memory_table(memory: cost.Memory, devices: int = 1) -> rich.table.Table:
    """The table of memory of a training step, by purpose."""
    table = rich.table.Table(title=f"Memory of a training step{_each(devices)}")
    table.add_column("")
    table.add_column("MiB", justify="right")
    for name, label in _PARTS.items():
        table.add_row(label, _mib(memory._asdict()[name]))
        if name == "temporaries":
            for inner, label in _WITHIN.items():
                table.add_row(f"  of these, {label}", _mib(memory._asdict()[inner]))
    table.add_section()
    table.add_row("in all", _mib(memory.total))
    return table


def peak_table(peak: Peak, free: int) -> rich.table.Table:
    """The table of the run's peak memory, and the free memory."""
    table = rich.table.Table(title="Peak memory of the run")
    table.add_column("")
    table.add_column("MiB", justify="right")
    table.add_row("the process itself", _mib(peak.process))
    table.add_row("the state", _mib(peak.state))
    table.add_row("its copy while a checkpoint is written", _mib(peak.copy))
    table.add_row("the largest program", _mib(max(peak.programs.values())))
    for name, value in peak.programs.items():
        table.add_row(f"  {name}", _mib(value))
    table.add_section()
    table.add_row("in all", _mib(peak.total))
    table.add_row("free, beside this process", _mib(free))
    return table


def summary(found: cost.Plan) -> str:
    """Sentences on what the tables leave out."""
    rates, (all_once, products_once) = found.rates, found.loops_counted_once
    return (
        f"{found.num_parameters:,} parameters."
        f" At best {1e3 * sum(found.seconds):,.1f} ms per step and"
        f" {found.tokens_per_second:,.0f} sampled tokens/s: this counts matrix products"
        " only, at the rates measured just now,"
        f" {rates.training / 1e9:,.1f} GFLOP/s in training,"
        f" {rates.decoding / 1e9:,.1f} in decoding, and {rates.memory / 1e9:,.1f} GB/s."
        "\nCounting each loop body once, the whole program has"
        f" {all_once / 1e9:,.3f} GFLOP according to the compiler, of which"
        f" {products_once / 1e9:,.3f} are matrix products."
        "\nWarm start and evaluations are not included."
    )


def refusal(program, config, peak: Peak, free: int) -> str:
    """The message of a run that does not fit, with changes that make it fit."""
    text = f"the run needs {_mib(peak.wanted)} MiB, and {_mib(free)} are free"
    largest = max(peak.programs.values())
    fixed = peak.wanted - largest
    if fixed >= free:
        return (
            f"{text}; parameters and optimiser state alone need {_mib(fixed)} MiB: take"
            " a smaller model, or a device with more memory."
        )
    factor = 2 ** math.ceil(math.log2(largest / (free - fixed)))
    found = [
        advice(program, config, name, factor, free) for name in (*_RAISED, *_LOWERED)
    ]
    fitting = [line for line in found if line is not None]
    if not fitting:
        return f"{text}; no change of a single number is enough: lower several."
    return f"{text}; it fits with one of\n  " + "\n  ".join(fitting)


def advice(program, config, name: str, factor: int, free: int) -> str | None:
    """A flag that makes the run fit by changing one number, and the memory it needs.

    Args:
      program: config -> the program.
      config: that does not fit.
      name: field of the config to change.
      factor: to change it by, if memory is proportional to it; twice the factor is
        tried as well.
      free: bytes that the run may take.

    Returns:
      None if the config has no such field, or no change of it is enough.
    """
    numbers = {field.name for field in dataclasses.fields(config)}
    if name not in numbers:
        return None
    for change in (factor, 2 * factor):
        old = vars(config)[name]
        value = old * change if name in _RAISED else old // change
        if value < 1:
            return None
        try:
            smaller = program(dataclasses.replace(config, **{name: value}))
            step = cost.memory(smaller, smaller.sizes(), smaller.compile())
            needed = peaks.peak(smaller, step, on_host=_on_host()).wanted
        except ValueError:  # such as prompts that the mesh does not divide
            continue
        if needed <= free:
            flag = name.replace("_", "-")
            return f"--{flag} {value} instead of {old}: {_mib(needed)} MiB"
    return None


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f}"
