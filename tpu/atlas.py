"""The atlas: what models of known shapes take on slices of TPUs, each row compiled.

python -m tpu.atlas [--only qwen2.5-0.5b] [--rows 2] [--minutes 20] [--again]

Rows that docs/atlas.json holds are kept; docs/atlas.md is written from it, and names
the rows that were not compiled. A row takes minutes.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from typing import Any

import tyro

from tpu import chips, page
from tpu.search import Row, compiled, fitting

DOCS = pathlib.Path(__file__).parent.parent / "docs"
MODELS = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen3-8b", "qwen2.5-32b")
SLICES = (
    *("v5e:2x4", "v6e:2x4", "v5p:2x2x1", "v5e:4x4", "v6e:4x4"),
    *("v5p:2x2x4", "v5e:4x8", "v5p:4x4x8"),
)
# Samples per prompt, tokens of a prompt, longest completion.
LENGTHS = ((8, 512, 1024), (16, 2048, 8192))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which rows."""

    only: str | None = None
    """Rows with this in their name, such as a model or a slice."""
    rows: int | None = None
    """Compile so many at most."""
    minutes: float | None = None
    """Give up a row after this."""
    again: bool = False
    """Compile rows that are there, too."""


def main(args: list[str] | None = None) -> None:
    """Compiles what is missing and writes the page."""
    options = tyro.cli(Options, args=args, description=__doc__)
    file = DOCS / "atlas.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    wanted = [r for r in rows() if options.only is None or options.only in r.name]
    wanted = [r for r in wanted if options.again or r.name not in found]
    limit = None if options.minutes is None else 60 * options.minutes
    failed = False
    for row in wanted[: options.rows]:
        print(f"compiling {row.name} ...", flush=True)
        try:
            found[row.name] = compiled(row, seconds=limit)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
        write(found)
    write(found)
    if failed:
        sys.exit(1)


@functools.cache
def rows() -> tuple[Row, ...]:
    """All steps of the atlas that fit by arithmetic; what is quickly compiled first.

    Each has 16 prompts, or one per chip, and the fewest microbatches that fit.
    """
    found = (planned(*of) for of in grid())
    return tuple(row for row in found if row is not None)


def grid() -> list[tuple[str, str, tuple[int, int, int]]]:
    """Model, slice and lengths of every step that the atlas asks for."""
    return [
        (model, topology, lengths)
        for lengths in LENGTHS
        for model in MODELS
        for topology in SLICES
    ]


@functools.cache
def planned(model: str, topology: str, lengths: tuple[int, int, int]) -> Row | None:
    """The step to compile; None if none fits by arithmetic."""
    prompts = max(16, chips.parse(topology).num_chips)
    found = [
        row
        for row, *_ in fitting(model, topology, *lengths, [prompts])
        if row.remat == "layers"
    ]
    return min(found, key=lambda row: (row.microbatches, len(row.mesh)), default=None)


def write(found: dict[str, Any]) -> None:
    """The file and the page, rows in the order of the list, with today's arithmetic."""
    order = {row.name: i for i, row in enumerate(rows())}
    names = sorted(found, key=lambda name: order.get(name, len(order)))
    found = {name: found[name] for name in names}
    for name, report in found.items():
        least = Row.named(name).arithmetic()
        report["memory_by_arithmetic"] = {**least._asdict(), "peak": least.peak}
    (DOCS / "atlas.json").write_text(json.dumps(found, indent=1) + "\n")
    missing = [row for row in rows() if row.name not in found]
    too_large = [of for of in grid() if planned(*of) is None]
    (DOCS / "atlas.md").write_text(page.text(found.values(), missing, too_large))


if __name__ == "__main__":
    main()
