"""Makes the text of docs/atlas.md from reports of `tpu.compile`."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tpu.search import Row, groups_in

_HEAD = """\
# Atlas

The memory and time of a training step on TPUs and H100s, from XLA's compiler, without
the chips: FADE, AdamW in float32, activations in bfloat16, layers rematerialised.
`python -m tpu.atlas` writes this page from `atlas.json`, and adds rows to that file.
Times are estimates, never measured: they assume the fractions of peak rates in
`tpu/roofline.py`, and no overlap. "By arithmetic" are the estimates of `tpu/memory.py`
and `tpu/links.py`, which compile nothing. By them each row has the mesh and the pieces
that are the fastest of those that fit; the last rows are those of other commands in the
documentation. Compile times are from a shared machine.
"""
_GIB = 2**30
_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
_KINDS += ("collective-permute",)
_PHASES = ("prefill", "decode", "update")
_MEMORY = ("arguments", "temporaries", "code", "peak")
_ARITHMETIC = ("state", "caches", "weights", "gradients", "head", "ends", "inputs")
_ARITHMETIC += ("layer", "logits")


def text(
    found: Iterable[Mapping[str, Any]],
    missing: Collection[Row],
    too_large: Collection[tuple[str, str, tuple[int, int, int]]],
) -> str:
    """The page.

    Args:
      found: reports of compiled rows.
      missing: rows that were not compiled.
      too_large: (model, slice, (samples, prompt tokens, completion tokens)) of rows
        that do not fit by arithmetic.
    """
    found = list(found)
    compiled = [one for one in found if "memory_per_device" in one]
    parts = [
        _HEAD,
        _table(_STEP_COLUMNS, found, _step_cells),
        "## Memory of a chip, GiB\n",
        _table(_MEMORY_COLUMNS, compiled, _memory_cells),
        _error(compiled),
        "## Seconds of a step, by phase\n",
        _table(_TIME_COLUMNS, compiled, _time_cells),
        "## Collectives of a chip and step, GB\n",
        _table(_COLLECTIVE_COLUMNS, compiled, _collective_cells),
        "## Not compiled\n",
        _not_compiled(missing, too_large),
    ]
    return "\n".join(part for part in parts if part)


def _table(columns, found, line) -> str:
    head = f"| model, slice, mesh | {' | '.join(columns)} |\n"
    head += "|---" * (1 + len(columns)) + "|\n"
    rows = (" | ".join([_name(one), *map(str, line(one))]) for one in found)
    return head + "".join(f"| {row} |\n" for row in rows)


def _name(one: Mapping[str, Any]) -> str:
    """The name of a row, unique on the page."""
    size = f"{one['prompts_per_step']} x {one['num_samples']}"
    tokens = f"{one['prompt_tokens']} + {one['max_tokens']}"
    cut = groups_in(one["num_group_parts"])
    return f"{one['model']}, {one['topology']}, {one['mesh']}, {size} x ({tokens}){cut}"


_STEP_COLUMNS = ("microbatches", "peak, GiB of", "step, s", "tokens/s", "compiling, s")


def _step_cells(one):
    limit = one["hbm_per_device"] / _GIB
    pieces, expected = one["num_microbatches"], one["roofline"]["expected"]
    if "memory_per_device" not in one:
        return pieces, f"more than {limit:g}: NO", "", "", ""
    peak = one["memory_per_device"]["peak"] / _GIB
    return (
        pieces,
        f"{peak:.1f} of {limit:g}" + ("" if one["fits"] else ": NO"),
        f"{expected['step_seconds']:.2f}",
        f"{expected['tokens_per_second']:,.0f}",
        f"{one['compile_seconds']:.0f}",
    )


_MEMORY_COLUMNS = (
    *_MEMORY,
    "by arithmetic: peak (off by)",
    *_ARITHMETIC,
)


def _off(one) -> float:
    """The relative error of arithmetic: its peak over XLA's, minus 1."""
    least = one["memory_by_arithmetic"]["peak"]
    return least / one["memory_per_device"]["peak"] - 1


def _memory_cells(one):
    measured, least = one["memory_per_device"], one["memory_by_arithmetic"]
    yield from (f"{measured[part] / _GIB:.2f}" for part in _MEMORY)
    yield f"{least['peak'] / _GIB:.2f} ({_off(one):+.0%})"
    yield from (f"{least[part] / _GIB:.2f}" for part in _ARITHMETIC)


def _error(did) -> str:
    if not did:
        return ""
    off = [_off(one) for one in did]
    return (
        f"Arithmetic differs from the compiler's peak by {min(off):+.0%} to"
        f" {max(off):+.0%} in {len(did)} rows.\n"
    )


_TIME_COLUMNS = (*_PHASES, "collectives", "of them in the update", "step at peak rates")


def _time_cells(one):
    expected = one["roofline"]["expected"]["seconds"]
    moved = {k: v for k, v in expected.items() if k.startswith("collectives")}
    yield from (f"{expected[phase]:.2f}" for phase in _PHASES)
    yield f"{sum(moved.values()):.2f}"
    yield f"{moved.get('collectives: update', 0.0):.2f}"
    yield f"{one['roofline']['at_peak']['step_seconds']:.2f}"


_COLLECTIVE_COLUMNS = (*_KINDS, "received", "by arithmetic")


def _collective_cells(one):
    steps = one["steps_per_dispatch"]
    for kind in _KINDS:
        of = one["collectives"].get(kind)
        yield (
            f"{of['count'] / steps:,.0f}: {of['bytes'] / steps / 1e9:.1f}" if of else ""
        )
    received = sum(moved["bytes"] for moved in one["moved_per_step"].values())
    yield f"{received / 1e9:.1f}"
    yield f"{one['received_by_arithmetic'] / 1e9:.1f}"


def _not_compiled(missing, too_large) -> str:
    lines = [f"- {model}, {where}: {_sizes(*of)}" for model, where, of in too_large]
    found = "For these rows only arithmetic is known. By arithmetic, these fit:\n\n"
    found += "".join(
        f"- {row.model}, {row.topology}, {row.mesh}, {row.prompts} x"
        f" {_sizes(row.samples, row.prompt_tokens, row.max_tokens)},"
        f" {row.pieces}\n"
        for row in missing
    )
    if lines:
        found += "\nThese do not fit, with 16 prompts or one per chip:\n\n"
        found += "\n".join(lines) + "\n"
    return found


def _sizes(samples: int, prompt_tokens: int, max_tokens: int) -> str:
    return f"{samples} x ({prompt_tokens} + {max_tokens})"
