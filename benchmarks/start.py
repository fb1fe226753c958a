"""Measures the time to the first step, with a cold and a warm compilation cache.

python -m benchmarks.start [--workload W1] [--rounds 3]

Every run is a new process of `benchmarks.rljax_step`. The time counts from its first
line to the end of the first dispatch; the part for compilation is reported as well. It
also compares the compilation of 4 and 32 layers.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks import results, workload

DEPTHS = ("shallow", "deep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=workload.WORKLOADS, default="W1")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found = []
    for _ in range(args.rounds):
        for name in dict.fromkeys((args.workload, *DEPTHS)):
            with tempfile.TemporaryDirectory() as cache:
                for kind in ("cold", "warm"):
                    found.append(
                        {"workload": name, "cache": kind, **first(name, cache)}
                    )
                    print(found[-1], flush=True)
    body = f"{table(found)}\n\n{ratios(found, args.workload)}"
    results.write("start", "Time to the first step", body, found)


def first(name: str, cache: str) -> dict[str, float]:
    """Seconds to the first step of a new process, and seconds of compilation."""
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    command = [sys.executable, "-m", "benchmarks.rljax_step", name, "--steps", "5"]
    done = subprocess.run(
        command, cwd=results.HERE.parent, env=env, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    facts = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: facts[name] for name in ("first_step_s", "compile_s")}


def values(found: list[dict], name: str, kind: str, key: str) -> list[float]:
    """The values of a measurement by round."""
    rows = [r for r in found if (r["workload"], r["cache"]) == (name, kind)]
    return [row[key] for row in rows]


def table(found: list[dict]) -> str:
    """The table of medians over rounds."""
    head = ["workload", "layers", "cache", "first step, s", "compilation, s"]
    cases = dict.fromkeys((row["workload"], row["cache"]) for row in found)
    return results.table(
        head,
        [
            (
                name,
                workload.WORKLOADS[name].num_layers,
                kind,
                statistics.median(values(found, name, kind, "first_step_s")),
                statistics.median(values(found, name, kind, "compile_s")),
            )
            for name, kind in cases
        ],
    )


def ratios(found: list[dict], name: str) -> str:
    """A sentence with the ratios warm to cold start, and deep to shallow model."""
    warm, cold = (values(found, name, k, "first_step_s") for k in ("warm", "cold"))
    few, many = (values(found, d, "cold", "compile_s") for d in DEPTHS)
    starts = " / ".join(f"{w / c:.2f}" for w, c in zip(warm, cold, strict=True))
    depths = " / ".join(f"{m / f:.2f}" for m, f in zip(many, few, strict=True))
    return (
        f"By round: a warm start of {name} takes {starts} of the time of a cold one;"
        f" 32 layers take {depths} times as long to compile as 4."
    )


if __name__ == "__main__":
    main()
