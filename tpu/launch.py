"""Writes scripts that launch a run: create, set up, run, watch, resume, delete.

python -m tpu.launch --topology v5e:2x4 --via queued --name first \\
    --runs gs://BUCKET --project PROJECT --shape qwen2.5-0.5b \\
    --algorithm fade --model MODEL --data problems.jsonl

Further flags are the experiment's. The head of each file has the memory, time and cost
of a step, from a report of `tpu.compile --json` or by arithmetic. Nothing is started:
read the files, then run `FOLDER/NAME.sh create`, and so on.
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
# Flags that a plan with --shape must not get, because the files are on another machine.
_PATHS = ("--model", "--data", "--test-data")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to launch, and where."""

    topology: str
    """Kind and shape of the slice, such as v5e:2x4; h100:8 for GPUs."""
    via: Literal["queued", "tpu-vm", "xpk", "jobset", "skypilot", "slurm"]
    """Tool that provides the machines."""
    experiment: str = "train"
    """Module of `experiments`."""
    name: str = "rljax"
    """Name of machines and run."""
    mesh: str | None = None
    """Passed to the experiment as --mesh."""
    shape: str | None = None
    """Known model to plan with, if the files of --model are not on this machine."""
    report: pathlib.Path | None = None
    """Report of tpu.compile --json on this run; None: estimate by arithmetic."""
    project: str = "PROJECT"
    """Project of Google Cloud."""
    zone: str | None = None
    """Zone of Google Cloud; None: one that has such chips."""
    runs: str | None = None
    """Where run folders are kept: gs://BUCKET, or a folder that all hosts see. None:
    gs://BUCKET, or for slurm the folder `runs`."""
    image: str = "IMAGE"
    """Container image, for GKE."""
    spot: bool = False
    """Use spot machines, which are cheaper and may be taken away."""
    out: pathlib.Path = pathlib.Path("launch")
    """Folder to write the files to."""


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
    """File name -> text of the files to write.

    Raises:
      ValueError: if the target cannot launch the run, or a step does not fit the chips.
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
    """The report on the run: that of --report, or one by arithmetic.

    Raises:
      ValueError: if the report is of another topology, or the run does not fit.
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
    """The flags without those of `_PATHS` and their values."""
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
    """Lines with the predicted memory, step time and cost."""
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
        return [*lines, "Cost: no list price is known"]
    spot = "; spot costs less" if options.spot else ""
    return [
        *lines,
        f"Cost: ${price:,.2f} per hour, ${price * slow / 3.6:,.2f} per 1,000 steps"
        f" ({chips.PRICES}{spot})",
    ]


if __name__ == "__main__":
    main()
