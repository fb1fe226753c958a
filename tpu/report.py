"""The report of `tpu.compile`: sizes and times, and the printed table."""

from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from rljax.plan import cost
from rljax.program import Program, Sizes
from tpu import links, roofline
from tpu.chips import Slice
from tpu.memory import Stored

_CLOSING = (
    "A dispatch is {steps_per_dispatch} training steps of {prompts_per_step} prompts of"
    " {prompt_tokens} tokens x {num_samples} samples x {max_tokens} tokens. The"
    " compiler's FLOPs and bytes count every loop body once; collectives count every"
    " iteration, up to the longest completion. The peak is the memory that a chip must"
    " have. Expected times assume {flops:.0%} of the peak FLOP/s, {memory:.0%} of the"
    " memory bandwidth, {links:.0%} of the links, {latency:g} s per collective, and no"
    " overlap; none of these was measured here."
)


def sizes_of(sizes: Sizes, stored: Stored) -> dict[str, Any]:
    """The report's sizes of a step and of the model."""
    return {
        "prompts_per_step": sizes.num_prompts,
        "num_samples": sizes.num_samples,
        "prompt_tokens": sizes.prompt_tokens,
        "max_tokens": sizes.max_tokens,
        "num_microbatches": sizes.num_prompt_pieces,
        "num_group_parts": sizes.num_group_parts,
        "num_parameters": stored.parameters,
        "parameter_bytes": stored.parameter_bytes,
    }


def times(
    sizes: Sizes,
    program: Program,
    place: Slice,
    axes: Mapping[str, int],
    compiled: Mapping[str, Any],
) -> dict[str, Any]:
    """The report's FLOPs per chip, and the time of a step, at peak rates and expected.

    Args:
      sizes: of the step.
      program: that is planned.
      place: the slice.
      axes: mesh axis -> devices along it.
      compiled: numbers of `compile_on`; empty if nothing was compiled.
    """
    count = cost.num_elements((program.state.params, program.state.frozen))
    moved = links.by_arithmetic(sizes, count, axes)
    if compiled:
        per_step = compiled["moved_per_step"]
        moved = {phase: roofline.Moved(**one) for phase, one in per_step.items()}
    done = roofline.work(sizes, count, axes, moved)
    traced = cost.traced_flops(program, sizes)
    found = {}
    for name, shares in (
        ("at_peak", roofline.Shares()),
        ("expected", roofline.EXPECTED),
    ):
        estimate = roofline.estimate(done, sizes, place.chip, shares)
        found[name] = {
            "seconds": estimate.seconds,
            "step_seconds": estimate.step,
            "tokens_per_second": estimate.tokens_per_second,
        }
    return {
        "work_per_device": {
            "matmul_flops_at_least": sum(cost.decoder_flops(sizes)) / place.num_chips,
            "matmul_flops_in_program": sum(traced) / place.num_chips,
            "bytes_decoded": done.decode_bytes,
        },
        "roofline": found,
        "dollars_per_hour": place.dollars_per_hour,
    }


def show(found: Mapping[str, Any]) -> None:
    """Prints the report as a table."""
    compiled = "memory_per_device" in found
    how = found["device_kind"] if compiled else "by arithmetic"
    table = rich.table.Table(
        title=f"{found['model'] or found['experiment']} on {found['devices']} x"
        f" {how} ({found['topology']}, {found['mesh']}):"
        f" {'fits' if found['fits'] else 'does NOT fit'}"
    )
    table.add_column("")
    table.add_column("per chip", justify="right")
    table.add_row("memory available", _gib(found["hbm_per_device"]))
    for name, size in found.get("memory_per_device", {}).items():
        table.add_row(f"memory: {name.replace('_', ' ')}", _gib(size))
    table.add_section()
    for name, size in found["memory_by_arithmetic"].items():
        table.add_row(f"by arithmetic: {name}", _gib(size))
    table.add_section()
    for name, number in found["work_per_device"].items():
        table.add_row(f"a step: {name.replace('_', ' ')}", f"{number / 1e9:,.2f} G")
    if compiled:
        _compiled_rows(table, found)
    table.add_section()
    for name, each in found["roofline"]["at_peak"]["seconds"].items():
        expected = found["roofline"]["expected"]["seconds"][name]
        table.add_row(f"{name}, at peak (expected)", f"{each:,.3f} ({expected:,.3f}) s")
    at_peak, expected = (found["roofline"][n] for n in ("at_peak", "expected"))
    for name, unit in (("step_seconds", "s"), ("tokens_per_second", "/s")):
        label = f"{name.replace('_', ' ')}, at peak (expected)"
        table.add_row(label, f"{at_peak[name]:,.2f} ({expected[name]:,.2f}) {unit}")
    console = rich.console.Console(highlight=False)
    console.print(table)
    console.print(_CLOSING.format_map({**found, **roofline.EXPECTED._asdict()}))


def _compiled_rows(table: rich.table.Table, found: Mapping[str, Any]) -> None:
    table.add_row("compiler: FLOPs", f"{found['flops_per_device'] / 1e9:,.2f} G")
    accessed = found["bytes_accessed_per_device"] / 1e9
    table.add_row("compiler: bytes accessed", f"{accessed:,.2f} G")
    table.add_section()
    for kind, number in found["collectives"].items():
        table.add_row(f"{kind}: {number['count']} per dispatch", _gib(number["bytes"]))
    for name, size in found["copied_to_every_device"].items():
        table.add_row(f"copied to every chip: {name}", _gib(size))
    table.add_section()
    for shape, size in found["largest_arrays"].items():
        table.add_row(f"array {shape}", _gib(size))
    table.add_section()
    table.add_row("compile time", f"{found['compile_seconds']:.1f} s")


def _gib(size: float) -> str:
    return f"{size / 2**30:,.3f} GiB"
