"""Searches for the largest step that fits a slice: mesh, prompts, pieces, remat.

python -m tpu.search --model qwen3-8b --topology v5p:2x2x4
    [--prompt-tokens 2048 --max-tokens 8192 --num-samples 16] [--no-compile]

It lists the largest batches that fit by arithmetic, and compiles them in turn until one
does fit.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tyro

from rljax import mesh
from rljax.model import shapes
from rljax.program import Sizes
from tpu import chips, links, memory, roofline


class Row(NamedTuple):
    """A step to compile: FADE and AdamW, parameters in float32, bfloat16 activations.

    model: a known shape.
    topology: the slice.
    mesh: as --mesh takes it.
    prompts, samples: prompts per step, and samples per prompt.
    remat: "layers" or "none", as --remat takes it.
    microbatches, group_parts: pieces of the prompts, and of each group.
    """

    model: str
    topology: str
    mesh: str
    prompts: int
    samples: int
    prompt_tokens: int
    max_tokens: int
    microbatches: int
    remat: str = "layers"
    group_parts: int = 1

    @property
    def name(self) -> str:
        """All fields as text, for docs/atlas.json."""
        return " ".join(map(str, self))

    @property
    def pieces(self) -> str:
        """The pieces in words."""
        return f"{self.microbatches} microbatches{groups_in(self.group_parts)}"

    @classmethod
    def named(cls, name: str) -> "Row":
        """The row with this name."""
        words = (int(w) if w.isdigit() else w for w in name.split())
        return cls(*words)  # type: ignore

    def arguments(self) -> list[str]:
        """Command-line arguments of `tpu.compile`."""
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
            "num-group-parts": self.group_parts,
            "remat": self.remat,
        }
        return [word for k, v in flags.items() for word in (f"--{k}", str(v))]

    def arithmetic(self) -> memory.Memory:
        """The memory on a chip, by arithmetic."""
        axes = mesh.parse(self.mesh)
        return memory.by_arithmetic(self.sizes(), axes, _stored(self.model))

    def sizes(self) -> Sizes:
        """The sizes of the step."""
        decoder = dataclasses.replace(
            shapes.named(self.model), dtype="bfloat16", remat=self.remat == "layers"
        )
        return Sizes(
            decoder=decoder,
            num_prompts=self.prompts,
            num_samples=self.samples,
            prompt_tokens=self.prompt_tokens,
            max_tokens=self.max_tokens,
            num_rows=self.prompts * self.samples,
            num_microbatches=self.microbatches,
            num_group_parts=self.group_parts,
        )


def groups_in(parts: int) -> str:
    """What a row says of groups that are cut; nothing of whole ones."""
    return f", groups in {parts}" if parts > 1 else ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The model and slice to search for."""

    model: str = "qwen2.5-0.5b"
    """A known model."""
    topology: str = "v5e:2x4"
    """Kind and shape of the slice."""
    prompt_tokens: int = 512
    """Tokens per prompt."""
    max_tokens: int = 1024
    """Longest completion, tokens."""
    num_samples: int = 8
    """Samples per prompt."""
    compile: bool = True
    """Compile the largest batch, and then smaller ones until one fits."""
    show: int = 5
    """Number of steps to list."""


def main(args: list[str] | None = None) -> None:
    """Parses the command line and searches."""
    options = tyro.cli(Options, args=args, description=__doc__)
    try:
        search(options)
    except ValueError as error:
        sys.exit(f"error: {error}")


def search(options: Options) -> Row:
    """The largest batch that fits by arithmetic and, if options say so, when compiled.

    Raises:
      ValueError: if no batch fits.
    """
    place = chips.parse(options.topology)
    found = list(
        fitting(
            options.model,
            options.topology,
            options.num_samples,
            options.prompt_tokens,
            options.max_tokens,
            [factor * place.num_chips for factor in (16, 8, 4, 2, 1)],
        )
    )
    for row, needed, seconds in found[: options.show]:
        print(
            f"{row.prompts} prompts, mesh {row.mesh}, {row.pieces}, remat {row.remat}:"
            f" {needed / memory.GIB:.1f} of"
            f" {place.chip.hbm_gib:g} GiB and {seconds:.3g} s, by arithmetic"
        )
    for row, *_ in found:
        words = "python -m tpu.compile " + " ".join(row.arguments())
        if not options.compile:
            print(words)
            return row
        try:
            report = compiled(row)
        except ValueError as error:
            print(f"no:  {row.name}: {str(error).splitlines()[0][:150]}", flush=True)
            continue
        print(f"{'yes' if report['fits'] else 'no'}: {row.name}", flush=True)
        if report["fits"]:
            print(words)
            return row
    raise ValueError(
        f"{options.model} must fit on {options.topology}, but not even"
        f" {place.num_chips} prompts do; take a larger slice."
    )


def fitting(
    model: str,
    topology: str,
    samples: int,
    prompt_tokens: int,
    max_tokens: int,
    prompts: Sequence[int],
) -> Iterator[tuple[Row, float, float]]:
    """Steps that fit a slice by arithmetic.

    Yields:
      (row, bytes per chip, expected seconds), in the order of `prompts`; for each
      number of prompts, the fastest first.
    """
    place = chips.parse(topology)
    stored = _stored(model)
    common = samples, prompt_tokens, max_tokens
    for num in prompts:
        found = []
        for axes, pieces, parts, remat in itertools.product(
            _meshes(place.num_chips, shapes.named(model).experts is not None),
            _parts(num),
            _parts(samples),
            ("none", "layers"),
        ):
            text = ",".join(f"{axis}={size}" for axis, size in axes.items())
            row = Row(model, topology, text, num, *common, pieces, remat, parts)
            sizes = row.sizes()
            decoder = sizes.decoder
            limits = mesh.Limits(
                num // pieces,
                decoder.num_kv_heads,
                1 if decoder.experts is None else decoder.experts.num,
            )
            if limits.broken(axes):
                continue
            needed = memory.by_arithmetic(sizes, axes, stored).peak
            if needed <= place.chip.hbm_gib * memory.GIB:
                moved = links.by_arithmetic(sizes, stored.parameters, axes)
                work = roofline.work(sizes, stored.parameters, axes, moved)
                time = roofline.estimate(work, sizes, place.chip, roofline.EXPECTED)
                found.append((time.step, len(found), row, needed))
        for seconds, _, row, needed in sorted(found):
            yield row, needed, seconds


@functools.cache
def _stored(model: str) -> memory.Stored:
    return memory.of_shape(shapes.named(model))


def _meshes(num: int, mixture: bool) -> Iterator[dict[str, int]]:
    yield {mesh.FSDP: num}
    for axis in (mesh.TENSOR, mesh.EXPERT) if mixture else (mesh.TENSOR,):
        for n in (2, 4, 8):
            if num % n == 0 and num > n:
                yield {mesh.FSDP: num // n, axis: n}


def _parts(num: int) -> list[int]:
    return [n for n in (1, 2, 4, 8, 16, 32) if num % n == 0]


def compiled(row: Row, *more: str, seconds: float | None = None) -> dict[str, Any]:
    """The report of `tpu.compile`, run in another process.

    Args:
      row: to compile.
      *more: further arguments.
      seconds: timeout; None: no limit.

    Raises:
      ValueError: with the error output, if there is no report.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "report.json"
        command = [sys.executable, "-m", "tpu.compile", *row.arguments(), *more]
        command += ["--json", str(file)]
        try:
            out = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(f"{row.name}: not done after {seconds:g} s") from error
        if file.exists():
            return json.loads(file.read_text())
    raise ValueError(f"{row.name}: {out.stderr.strip()[-1500:]}")


if __name__ == "__main__":
    main()
