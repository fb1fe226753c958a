"""Writes the files that launch a run: create, set up, run, watch, resume, delete.

python -m tpu.launch --topology v5e:2x4 --via queued --name first \\
    --runs gs://BUCKET --project PROJECT --shape qwen2.5-0.5b \\
    --algorithm fade --model MODEL --data problems.jsonl

Flags that are not of this command are the experiment's. The head of each file says what
a step takes: from a report of `tpu.compile --json`, else by arithmetic. Nothing is
started: read the files, then `FOLDER/NAME.sh create`, and so on.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import tyro

from tpu import chips
from tpu import compile as ahead
from tpu.target import jobset, queued, skypilot, slurm, tpu_vm, xpk
from tpu.target.job import Job, check_name

TARGETS: dict[str, Callable[[Job], dict[str, str]]] = {
    "queued": queued.files,
    "tpu-vm": tpu_vm.files,
    "xpk": xpk.files,
    "jobset": jobset.files,
    "skypilot": skypilot.files,
    "slurm": slurm.files,
}
# What a plan of another model's shape must not see: the files are elsewhere.
_PATHS = ("--model", "--data", "--test-data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Where to launch what."""

    topology: str
    """Kind and shape of the slice, such as v5e:2x4; h100:8 for GPUs."""
    via: Literal["queued", "tpu-vm", "xpk", "jobset", "skypilot", "slurm"]
    """Who gives the machines."""
    experiment: str = "train"
    """Module of `experiments`."""
    name: str = "rljax"
    """Of machines and run."""
    mesh: str | None = None
    """As --mesh of the experiment, to which it is passed."""
    shape: str | None = None
    """Known model whose shape is planned, where the model's files are not here."""
    report: pathlib.Path | None = None
    """What tpu.compile --json wrote of this run; None: the plan's arithmetic."""
    project: str = "PROJECT"
    """Of Google Cloud."""
    zone: str | None = None
    """None: one that has such chips."""
    runs: str | None = None
    """Where run folders are kept: gs://BUCKET, or a folder that all hosts see. None:
    gs://BUCKET, for slurm the folder runs."""
    image: str = "IMAGE"
    """Of a container, for GKE."""
    spot: bool = False
    """Cheaper chips, that may be taken away."""
    out: pathlib.Path = pathlib.Path("launch")
    """Folder of the files."""


def main(args: list[str] | None = None) -> None:
    """Parses the command line and writes the files."""
    jax.config.update("jax_platforms", "cpu")
    options, flags = tyro.cli(
        Options, args=args, description=__doc__, return_unknown_args=True
    )
    try:
        files = launch(options, flags)
    except ValueError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = options.out / name
        path.write_text(text)
        if path.suffix == ".sh":
            path.chmod(0o755)
        print(f"wrote {path}")


def launch(options: Options, flags: list[str]) -> dict[str, str]:
    """The files, text by name.

    Raises:
      ValueError: for what cannot be launched there, or fits no chip.
    """
    place = chips.parse(options.topology)
    check_name(options.name)
    runs = options.runs
    if runs is None:
        runs = "runs" if options.via == "slurm" else "gs://BUCKET"
    mesh = [] if options.mesh is None else ["--mesh", options.mesh]
    job = Job(
        place=place,
        name=options.name,
        module=f"experiments.{options.experiment}",
        flags=(*flags, *mesh),
        head=tuple(head(report_of(options, flags), place, options)),
        project=options.project,
        zone=options.zone or place.chip.zone,
        runs=runs.rstrip("/"),
        image=options.image,
        spot=options.spot,
    )
    return TARGETS[options.via](job)


def report_of(options: Options, flags: list[str]) -> dict[str, Any]:
    """What is predicted of the run.

    Raises:
      ValueError: if the report is of another topology, or it does not fit.
    """
    if options.report is None:
        found = ahead.plan_for(
            ahead.Options(
                experiment=options.experiment,
                topology=options.topology,
                mesh=options.mesh,
                model=options.shape,
                arithmetic=True,
            ),
            _planned(flags) if options.shape else flags,
        )
    else:
        found = json.loads(options.report.read_text())
        if found["topology"] != options.topology:
            raise ValueError(
                f"--report must be of --topology {options.topology}, got one of"
                f" {found['topology']}; compile it again."
            )
    if not found["fits"]:
        raise ValueError(found["refusal"])
    return found


def _planned(flags: list[str]) -> list[str]:
    """The flags without paths of model and data."""
    kept, skip = [], False
    for flag in flags:
        if (
            not skip
            and flag not in _PATHS
            and not flag.startswith(tuple(f"{path}=" for path in _PATHS))
        ):
            kept.append(flag)
        skip = not skip and flag in _PATHS
    return kept


def head(found: dict[str, Any], place: chips.Slice, options: Options) -> list[str]:
    """Lines of prediction: memory, step time, cost."""
    compiled = found.get("memory_per_device")
    peak = (compiled or found["memory_by_arithmetic"])["peak"] / 2**30
    how = "the compiler's peak" if compiled else "by arithmetic; compile it to be sure"
    slow, fast = (found["roofline"][n]["step_seconds"] for n in ("expected", "at_peak"))
    lines = [
        f"{found['model'] or found['experiment']} on {place} ({place.num_chips} chips,"
        f" on {place.num_hosts} host(s)), mesh {found['mesh']}",
        f"Memory of a chip: {peak:.1f} of {place.chip.hbm_gib:g} GiB ({how})",
        f"A step of {found['prompts_per_step']} x {found['num_samples']} samples x"
        f" {found['max_tokens']} tokens: {slow:.3g} s expected, {fast:.3g} s at peak"
        " rates (an estimate, never measured)",
    ]
    price = place.dollars_per_hour
    if price is None:
        return [*lines, "Cost: no list price is known here"]
    spot = "; spot costs less" if options.spot else ""
    return [
        *lines,
        f"Cost: ${price:,.2f} per hour, ${price * slow / 3.6:,.2f} per 1,000 steps"
        f" ({chips.PRICES}{spot})",
    ]


if __name__ == "__main__":
    main()
