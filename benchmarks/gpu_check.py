"""Checks in ten minutes that everything runs on this accelerator, and how fast.

python -m benchmarks.gpu_check [--model FOLDER] [--quick]

Each stage is a process with a time limit; if one fails, the others still run. The last
stage, `benchmarks.accelerator`, writes its rows to accelerator.md until its time limit.
--quick tries the script on any machine.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
TOTAL = 590  # seconds


class Stage(NamedTuple):
    """A module to run, with its arguments.

    title: for the output.
    arguments: of `python -m`.
    limit: seconds.
    keeps: whether it succeeds when the time limit stops it.
    """

    title: str
    arguments: list[str]
    limit: float
    keeps: bool = False


def stages(model: str, folder: str, quick: bool) -> list[Stage]:
    """The stages, in order."""
    train = ["experiments.train", "--quick", "--run-dir"]
    real = ["experiments.real", "--run-dir", f"{folder}/real"]
    if quick:
        real += ["--quick"]
    else:
        real += ["--model", model, "--dtype", "bfloat16", "--num-steps", "8"]
        real += ["--evaluate-every", "8", "--checkpoint-every", "8"]
    speed = ["benchmarks.accelerator", "--rounds", "2"]
    speed += ["--models", "tiny"] if quick else ["--models", "half_billion,smollm2"]
    # Only accelerators have a kernel to check.
    kernel = [Stage("attention's kernel", ["benchmarks.attention_check"], 60)]
    return [
        Stage("the device's numbers", ["benchmarks.device_numbers"], 90),
        *([] if quick else kernel),
        Stage("train --quick", [*train, f"{folder}/train"], 90),
        Stage(
            "train --quick, PPO", [*train, f"{folder}/ppo", "--algorithm", "ppo"], 60
        ),
        Stage(
            "train --quick, a verifier in Python",
            [*train, f"{folder}/python", "--verifier", "python"],
            60,
        ),
        Stage("a real model in bfloat16", real, 180),
        Stage("limits", speed, TOTAL, keeps=True),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="as of experiments.real")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    # Ask for the device in another process: on a GPU, jax reserves most of the memory.
    asked = (
        "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, sep=',')"
    )
    answer = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, cwd=ROOT
    )
    platform, kind = answer.stdout.strip().split(",", 1) if answer.stdout else ("", "")
    if not platform or (platform == "cpu" and not args.quick):
        sys.exit(
            "this check needs an accelerator, got"
            f" {platform or answer.stderr[-300:]}; install 'jax[cuda13]' into .venv, or"
            " try the script with --quick."
        )
    print(f"on {kind}", flush=True)
    # --quick may run on a slow machine.
    total = 6 * TOTAL if args.quick else TOTAL
    end, failed = time.monotonic() + total, []
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages(args.model, folder, args.quick):
            left = end - time.monotonic()
            said = run(stage, left if args.quick else min(stage.limit, left))
            if said is not None:
                failed.append(stage.title)
                print(said, flush=True)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")
    print(f"all stages passed, in {total - (end - time.monotonic()):.0f} s")


def run(stage: Stage, limit: float) -> str | None:
    """Runs a stage and prints the end of its output; returns a message if it failed."""
    print(f"== {stage.title}: python -m {' '.join(stage.arguments)}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *stage.arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            code = process.wait(max(limit, 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        log.seek(0)
        print("\n".join(log.read().splitlines()[-30:]), flush=True)
    taken = time.monotonic() - start
    if code == 0 or (code is None and stage.keeps):
        print(f"== {'done' if code == 0 else 'stopped'} after {taken:.0f} s")
        return None
    return f"== {stage.title} " + (
        f"did not end within {limit:.0f} s" if code is None else f"ended with {code}"
    )


if __name__ == "__main__":
    main()
