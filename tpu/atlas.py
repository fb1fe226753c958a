"""The atlas: what models of known shapes take on slices of TPUs, each row compiled.

python -m tpu.atlas [--only qwen2.5-0.5b] [--again] [--rows 2]
python -m tpu.atlas --search --model qwen3-8b --topology v5p:2x2x4

Rows that docs/atlas.json holds are kept; docs/atlas.md is written from it and lists
nothing else. A row takes minutes. --search finds, by arithmetic, the largest batch that
fits a slice, over meshes and numbers of microbatches, and compiles it unless told not.
"""

import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import tyro

from rljax import mesh
from tpu import chips

DOCS = pathlib.Path(__file__).parent.parent / "docs"
_HEAD = """\
# Atlas

What a training step takes on TPUs, by XLA's compiler for chips that are not there: FADE,
AdamW in float32, activations in bfloat16, layers computed again backward. Written by
`python -m tpu.atlas`; a row that is not here was not compiled. Times are estimates at the
shares of peak rates that `tpu/roofline.py` names, and were never measured.

| model | slice, mesh | prompts x samples x (prompt + completion) | microbatches | peak, GiB of | by arithmetic | step, s | tokens/s | collectives, GB | compiling, s |
|---|---|---|---|---|---|---|---|---|---|
"""  # noqa: E501


class Row(NamedTuple):
    """A step to compile."""

    model: str
    topology: str
    mesh: str
    prompts: int
    samples: int
    prompt_tokens: int
    max_tokens: int
    microbatches: int

    @property
    def name(self) -> str:
        """Unique, for the file."""
        return " ".join(map(str, self))

    def arguments(self) -> list[str]:
        """For `tpu.compile`."""
        flags = {
            "model": self.model,
            "topology": self.topology,
            "mesh": self.mesh,
            "prompt-tokens": self.prompt_tokens,
            "algorithm": "fade",
            "num-prompts": self.prompts,
            "num-samples": self.samples,
            "max-tokens": self.max_tokens,
            "num-microbatches": self.microbatches,
        }
        return [word for k, v in flags.items() for word in (f"--{k}", str(v))]


# Small ones first, so that --rows begins with what is quick.
ROWS = (
    Row("qwen2.5-0.5b", "v5e:2x4", "fsdp=8", 16, 4, 64, 16, 1),
    Row("qwen2.5-0.5b", "v5e:2x4", "fsdp=8", 16, 8, 512, 1024, 2),
    Row("qwen2.5-0.5b", "v5e:4x4", "fsdp=16", 32, 8, 512, 1024, 2),
    Row("qwen2.5-1.5b", "v5e:2x4", "fsdp=8", 16, 8, 512, 1024, 2),
    Row("qwen2.5-1.5b", "v6e:2x4", "fsdp=8", 16, 8, 512, 1024, 2),
    Row("qwen3-8b", "v6e:4x4", "fsdp=4,tensor=4", 16, 8, 512, 1024, 1),
    Row("qwen3-8b", "v5p:2x2x1", "fsdp=4", 16, 8, 512, 1024, 4),
    Row("qwen3-8b", "v5e:4x8", "fsdp=4,tensor=8", 32, 8, 512, 1024, 1),
    Row("qwen3-8b", "v5p:2x2x4", "fsdp=4,tensor=4", 16, 16, 2048, 8192, 1),
    Row("qwen2.5-32b", "v5p:4x4x8", "fsdp=16,tensor=8", 128, 16, 2048, 8192, 1),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which rows."""

    only: str | None = None
    """Rows whose model is this."""
    rows: int | None = None
    """Compile so many at most."""
    again: bool = False
    """Compile rows that are there, too."""
    search: bool = False
    """Find what fits --topology instead."""
    model: str = "qwen2.5-0.5b"
    """For --search."""
    topology: str = "v5e:2x4"
    """For --search."""
    prompt_tokens: int = 512
    """For --search."""
    max_tokens: int = 1024
    """For --search."""
    samples: int = 8
    """For --search."""
    compile: bool = True
    """Whether --search compiles what it finds."""


def main(args: list[str] | None = None) -> None:
    """Compiles what is missing and writes the page, or searches."""
    options = tyro.cli(Options, args=args, description=__doc__)
    try:
        if options.search:
            search(options)
            return
        file = DOCS / "atlas.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        wanted = [r for r in ROWS if options.only in (None, r.model)]
        wanted = [r for r in wanted if options.again or r.name not in found]
        for row in wanted[: options.rows]:
            print(f"compiling {row.name} ...", flush=True)
            found[row.name] = report_on(row)
            write(found)
        write(found)
    except ValueError as error:
        sys.exit(f"error: {error}")


def report_on(row: Row, *more: str) -> dict[str, Any]:
    """The report of `tpu.compile`, from a process of its own.

    Raises:
      ValueError: with its words, if it fails; what does not fit fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "report.json"
        command = [sys.executable, "-m", "tpu.compile", *row.arguments(), *more]
        command += ["--json", str(file)]
        out = subprocess.run(command, capture_output=True, text=True)
        if file.exists():
            return json.loads(file.read_text())
    raise ValueError(f"{row.name}: {out.stderr.strip()[-1500:]}")


def write(found: dict[str, Any]) -> None:
    """The file and the page, rows in the order of the list."""
    order = {row.name: i for i, row in enumerate(ROWS)}
    names = sorted(found, key=lambda name: order.get(name, len(order)))
    found = {name: found[name] for name in names}
    (DOCS / "atlas.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [line(report) for report in found.values()]
    (DOCS / "atlas.md").write_text(_HEAD + "".join(lines))


def line(found: dict[str, Any]) -> str:
    """A report as a row of the page."""
    gib = 2**30
    expected = found["roofline"]["expected"]
    peak, limit = found["memory_per_device"]["peak"], found["hbm_per_device"]
    cells = (
        found["model"],
        f"{found['topology']}, {found['mesh']}",
        f"{found['prompts_per_step']} x {found['num_samples']} x"
        f" ({found['prompt_tokens']} + {found['max_tokens']})",
        found["num_microbatches"],
        f"{peak / gib:.1f} of {limit / gib:g}" + ("" if found["fits"] else ": NO"),
        f"{found['memory_by_arithmetic']['peak'] / gib:.1f}",
        f"{expected['step_seconds']:.2f}",
        f"{expected['tokens_per_second']:,.0f}",
        f"{sum(found['link_bytes_per_step'].values()) / 1e9:,.1f}",
        f"{found['compile_seconds']:.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |\n"


def candidates(options: Options) -> Iterator[Row]:
    """Steps that a slice could run, the largest batch first, few pieces before many."""
    place = chips.parse(options.topology)
    num = place.num_chips
    meshes = [f"{mesh.FSDP}={num}"]
    meshes += [
        f"{mesh.FSDP}={num // n},{mesh.TENSOR}={n}" for n in (2, 4, 8) if num % n == 0
    ]
    for factor, pieces, axes in itertools.product(
        (16, 8, 4, 2, 1), (1, 2, 4, 8), meshes
    ):
        if factor % pieces == 0:
            yield Row(
                options.model,
                options.topology,
                axes,
                factor * num,
                options.samples,
                options.prompt_tokens,
                options.max_tokens,
                pieces,
            )


def search(options: Options) -> Row:
    """The largest batch that fits by arithmetic and, unless told not, when compiled.

    Raises:
      ValueError: if none does.
    """
    for row in candidates(options):
        try:
            found = report_on(row, "--arithmetic")
            if found["fits"] and options.compile:
                found = report_on(row)
        except ValueError as error:  # a mesh that does not divide heads, say
            print(f"no:  {row.name}: {str(error).splitlines()[0][:150]}", flush=True)
            continue
        print(f"{'yes' if found['fits'] else 'no'}: {row.name}", flush=True)
        if found["fits"]:
            print("python -m tpu.compile " + " ".join(row.arguments()))
            return row
    raise ValueError(
        f"{options.model} must fit {options.topology}, but not even"
        f" {chips.parse(options.topology).num_chips} prompts do; take a larger slice."
    )


if __name__ == "__main__":
    main()
