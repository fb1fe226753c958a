"""Writes docs/atlas.md: memory and time of known models on TPU slices, as compiled.

python -m tpu.atlas [--only qwen2.5-0.5b] [--rows 2] [--minutes 20] [--again]

Compiles rows that docs/atlas.json lacks, adds them to that file, and writes
docs/atlas.md from it. The page also lists the rows that were not compiled. A row takes
minutes.
"""

import dataclasses
import functools
import json
import math
import pathlib
import sys
from typing import Any

import tyro

from rljax import mesh
from tpu import chips, links, memory, page
from tpu.search import Row, compiled, fitting

DOCS = pathlib.Path(__file__).parent.parent / "docs"
MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-8b", "qwen2.5-32b")
SLICES = (
    *("v5e:2x4", "v6e:2x4", "v5p:2x2x1", "v5e:4x4", "v6e:4x4"),
    *("v5p:2x2x4", "v5e:4x8", "v5p:4x4x8", "h100:1", "h100:8"),
)
MOST = 0.95
"""Part of a chip's memory that a row may need by arithmetic, which counts no copies."""
# (samples per prompt, prompt tokens, completion tokens)
LENGTHS = ((8, 512, 1024), (16, 2048, 8192))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which rows to compile."""

    only: str | None = None
    """Only rows whose name contains this text, such as a model or a slice."""
    rows: int | None = None
    """Maximum number of rows to compile."""
    minutes: float | None = None
    """Time after which a row is given up."""
    again: bool = False
    """Also compile rows that docs/atlas.json already has."""


def main(args: list[str] | None = None) -> None:
    """Compiles missing rows and writes the page."""
    options = tyro.cli(Options, args=args, description=__doc__)
    file = DOCS / "atlas.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    limit = None if options.minutes is None else 60 * options.minutes
    known, tried, failed = set() if options.again else set(found), set(), False

    def wanted() -> list[Row]:
        named = (r for r in rows(refused(found)) if (options.only or "") in r.name)
        return [row for row in named if row.name not in known | tried]

    while len(tried) != options.rows and (left := wanted()):
        row = left[0]
        tried.add(row.name)
        print(f"compiling {row.name} ...", flush=True)
        try:
            report = compiled(row, seconds=limit)
            if report["fits"] and "memory_per_device" not in report:
                raise ValueError(f"{row.name}: not compiled; tpu/gpu.py says how")
            found[row.name] = report
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
        write(found)
    write(found)
    if failed:
        sys.exit(1)


def refused(found: dict[str, Any]) -> frozenset[str]:
    """Names of the rows that do not fit when compiled."""
    return frozenset(name for name, report in found.items() if not report["fits"])


@functools.cache
def rows(without: frozenset[str] = frozenset()) -> tuple[Row, ...]:
    """The rows of the grid that fit by arithmetic; those that compile fast come first.

    A row has 16 prompts, or one per chip, and the mesh and pieces that are the fastest
    of those that fit, by arithmetic.

    Args:
      without: names of rows that do not fit when compiled. A row that needs less by
        arithmetic takes the place of each.
    """
    found = (planned(*of, without) for of in grid())
    return tuple(row for row in found if row is not None)


def grid() -> list[tuple[str, str, tuple[int, int, int]]]:
    """(model, slice, lengths) of every row of the atlas, whether it fits or not."""
    return [
        (model, topology, lengths)
        for lengths in LENGTHS
        for model in MODELS
        for topology in SLICES
    ]


@functools.cache
def planned(
    model: str,
    topology: str,
    lengths: tuple[int, int, int],
    without: frozenset[str] = frozenset(),
) -> Row | None:
    """The row to compile; None if none fits by arithmetic."""
    prompts = max(16, chips.parse(topology).num_chips)
    most = MOST * chips.parse(topology).chip.hbm_gib * memory.GIB
    found = [
        (row, needed)
        for row, needed, _ in fitting(model, topology, *lengths, [prompts])
        if row.remat == "layers" and needed <= most
    ]
    too_much = min((n for row, n in found if row.name in without), default=math.inf)
    return next((row for row, needed in found if needed < too_much), None)


def write(found: dict[str, Any]) -> None:
    """Writes the file and the page, in the order of `rows`, with current arithmetic."""
    without = refused(found)
    order = {row.name: i for i, row in enumerate(rows(without))}
    names = sorted(found, key=lambda name: order.get(name, len(order)))
    found = {name: found[name] for name in names}
    for name, report in found.items():
        row, num = Row.named(name), report["num_parameters"]
        least = row.arithmetic()
        report["memory_by_arithmetic"] = {**least._asdict(), "peak": least.peak}
        moved = links.by_arithmetic(row.sizes(), num, mesh.parse(row.mesh))
        report["received_by_arithmetic"] = sum(one.bytes for one in moved.values())
    (DOCS / "atlas.json").write_text(json.dumps(found, indent=1) + "\n")
    missing = [row for row in rows(without) if row.name not in found]
    too_large = [of for of in grid() if planned(*of, without) is None]
    (DOCS / "atlas.md").write_text(page.text(found.values(), missing, too_large))


if __name__ == "__main__":
    main()
