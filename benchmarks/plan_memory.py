"""Compares the peak memory of runs with the prediction of `--plan`, at three sizes.

python -m benchmarks.plan_memory [--smollm2 FOLDER] [--only 25M]

Each command runs twice, in new processes: once with --plan, whose "in all" is the
prediction, and once for a few steps with an evaluation and a checkpoint, whose largest
resident set is the measurement.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from typing import NamedTuple

from benchmarks import results

WITHIN = 0.15
"""Largest allowed error of the plan, as a fraction of the run's peak."""

_SHORT = ["--num-steps", "4", "--evaluate-every", "2", "--checkpoint-every", "2"]
_SHORT += ["--no-compilation-cache"]


class Case(NamedTuple):
    """A command to run; `words` are the arguments of `python -m`."""

    name: str
    words: list[str]


def cases(smollm2: str) -> list[Case]:
    """Cases with 0.1 and 25 million parameters, and SmolLM2-135M."""
    addition = ["experiments.addition", "--warm-steps", "0", "--num-test", "64"]
    addition += ["--steps-per-dispatch", "2"]
    large = ["--num-layers", "6", "--d-model", "512", "--num-heads", "8"]
    large += ["--d-ff", "2048"]
    return [
        Case("0.1M", [*addition, *_SHORT]),
        Case("25M", [*addition, *large, *_SHORT]),
        Case("135M", ["experiments.real", "--model", smollm2, *_SHORT]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smollm2", default="smollm2", help="folder of SmolLM2-135M")
    parser.add_argument("--only", help="name of a case")
    args = parser.parse_args()
    found = []
    for case in cases(args.smollm2):
        if args.only in (None, case.name):
            found.append(compared(case))
            print(found[-1], flush=True)
    if args.only is None:
        results.write("plan_memory", "A run's memory and its plan", table(found), found)
    if any(abs(off(row)) > WITHIN for row in found):
        sys.exit(f"error: a plan must be within {WITHIN:.0%} of the run's peak")


def compared(case: Case) -> dict:
    """The planned and the measured MiB of a case."""
    text, _ = finished([*case.words, "--plan"])
    planned = float(re.findall(r"in all\s+│\s*([\d,.]+)", text)[-1].replace(",", ""))
    with tempfile.TemporaryDirectory() as folder:
        _, taken = finished([*case.words, "--run-dir", f"{folder}/run"])
    return {"case": case.name, "planned_mib": planned, "taken_mib": round(taken, 1)}


def finished(words: list[str]) -> tuple[str, float]:
    """The output of a command, and its largest resident set in MiB."""
    command = [sys.executable, "-m", *words]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        env = os.environ | {"COLUMNS": "120"}
        process = subprocess.Popen(
            command, cwd=results.HERE.parent, stdout=out, stderr=errors, env=env
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), errors.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{errors.read()[-3000:]}")
        return out.read(), usage.ru_maxrss / 1024


def off(row: dict) -> float:
    """The relative error of the plan."""
    return row["planned_mib"] / row["taken_mib"] - 1


def table(found: list[dict]) -> str:
    """The table of planned and measured memory."""
    rows = [
        (r["case"], r["planned_mib"], r["taken_mib"], f"{off(r):+.1%}") for r in found
    ]
    return results.table(["parameters", "planned, MiB", "taken, MiB", "off by"], rows)


if __name__ == "__main__":
    main()
