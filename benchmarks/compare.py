"""Compares the speed of rljax and its peers on the same work.

python -m benchmarks.compare --peers trl,tunix [--workloads W1] [--rounds 3]

Each peer has an environment of its own, .peers/<peer>, with pinned versions, made on
first use. In each round every implementation runs once. The results are added to
results.json beside this file, and RESULTS.md is written from it. Compare only within a
round: the speed of a shared host drifts by a factor of up to 1.6 within minutes.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import venv

from benchmarks import workload

HERE = pathlib.Path(__file__).parent
PEERS = {
    "trl": (
        "torch==2.13.0",
        "trl==1.16.0",
        "transformers==5.23.0",
        "accelerate==1.15.0",
        "datasets==5.2.0",
    ),
    "tunix": (
        "google-tunix==0.1.7",
        "jax==0.10.2",
        "flax==0.12.8",
        "optax==0.2.8",
        "orbax-checkpoint==0.12.8",
        "qwix==0.1.8",
        "transformers==5.12.1",
    ),
}
RATES = ("XLA's products", "torch's products")  # the latter only if trl is a peer
CAVEATS = """\
Caveats: This is one tiny model on one small CPU machine, which may be shared. It says
nothing about accelerators or large models. Compare only within a round.

- Time: the peers measure the gap between optimiser steps, rljax a fifth of a dispatch
  of 5 steps. End tokens are ignored, so every implementation samples exactly the same
  number of tokens per step.
- `unshared` gives every sample its own copy of the prompt, as the peers do.
- rljax trains in microbatches that fit in a core's cache, with the same gradient. The
  peers train without microbatches, which is their best setting known to us.
- A floor is the arithmetic of the step's matrix products, without attention, divided by
  the rate that forward products of a whole batch reach in the same round, in XLA or in
  torch. `products alone` is the time of the step's own products, each measured at its
  own shape.
- The parts of rljax's step are timed as separate programs, so their sum may differ from
  the step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", default="trl")
    parser.add_argument("--workloads", default="W1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    peers = [name for name in args.peers.split(",") if name]
    unknown = sorted({*peers} - {*PEERS})
    if unknown:
        sys.exit(f"--peers knows {', '.join(PEERS)}, got {', '.join(unknown)}")
    pythons = {name: environment(name) for name in peers}
    for name in args.workloads.split(","):
        runs = commands(name, args.steps, pythons)
        rounds = [measure(runs) for _ in range(args.rounds)]
        print(markdown(name, rounds), flush=True)
        write(name, rounds)  # after each workload, because the largest takes an hour


def write(name: str, rounds: list[dict]) -> None:
    """Adds a workload to results.json, and writes RESULTS.md from it."""
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}",
        "command": f"python {' '.join(sys.orig_argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": rounds,
    }
    path.write_text(json.dumps(results, indent=1))
    (HERE / "RESULTS.md").write_text(page(results))


def page(results: dict) -> str:
    """The text of RESULTS.md: caveats, a table per workload, and NOTES.md."""
    tables = [
        f"{markdown(title, found['rounds'])}\n\nWritten by `{found['command']}`"
        f" on {found['date']}, {found['machine']}."
        for title, found in results.items()
    ]
    notes = HERE / "NOTES.md"
    parts = ["# Speed", CAVEATS, *tables, notes.read_text() if notes.exists() else ""]
    return "\n\n".join(parts).strip() + "\n"


def environment(name: str) -> pathlib.Path:
    """The Python of a peer's environment, which is made on first use."""
    folder = HERE.parent / ".peers" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {', '.join(PEERS[name])}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        # The first package alone, so that no other one pulls in another build of it.
        first, *rest = PEERS[name]
        subprocess.run([*pip, first], check=True)
        subprocess.run([*pip, first, *rest], check=True)
        (folder / "installed").touch()
    return python


def commands(name: str, steps: int, pythons: dict) -> dict[str, list[str]]:
    """Name -> command line of what runs in each round, in order."""
    ours = [sys.executable, "-m", "benchmarks.rljax_step", name, "--steps", "25"]
    runs = {RATES[0]: [sys.executable, "-m", "benchmarks.floor", name]}
    if "trl" in pythons:
        runs[RATES[1]] = [str(pythons["trl"]), str(HERE / "torch_rate.py"), name]
    for peer, python in pythons.items():
        script = HERE / f"{peer}_step.py"
        runs[peer] = [str(python), str(script), name, "--steps", str(steps)]
    runs["rljax unshared"] = [*ours, "--unshared"]
    runs["rljax"] = ours
    return runs


def measure(runs: dict[str, list[str]]) -> dict[str, dict]:
    """One round: name -> the JSON in the last line that the command prints."""
    out = {}
    for name, command in runs.items():
        done = subprocess.run(
            command, cwd=HERE.parent, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
        found = json.loads(done.stdout.strip().splitlines()[-1])
        if "ms" in found:
            found["median"] = statistics.median(found["ms"])
        out[name] = found
        print(f"{name:16s} {summary(found)}", flush=True)
    return out


def summary(found: dict) -> str:
    """The main figure of a measurement."""
    if "median" in found:
        return f"{found['median']:8.1f} ms"
    return f"{found['gflops']:8.0f} GFLOP/s"


def markdown(name: str, rounds: list[dict]) -> str:
    """The table of one workload, with a row per implementation."""
    work = workload.WORKLOADS[name]
    head = (
        f"## {name}: {work.num_layers} layers x {work.d_model}, {work.num_prompts}"
        f" prompts x {work.num_samples} samples x {work.new_tokens} tokens\n\n"
        "| | ms/step by round (least, most) | tokens/s | peak MB | first step, s |"
    )
    rates = [n for n in rounds[0] if n in RATES]
    names = [n for n in rounds[0] if n not in RATES]
    peers = [n for n in names if not n.startswith("rljax")]
    head += "".join(f" floor by {rate} / time |" for rate in rates)
    head += " products alone / time |"
    head += "".join(f" speed against {p}, by round |" for p in peers)
    lines = [head, "|---" * (head.splitlines()[-1].count("|") - 1) + "|"]
    for n in names:
        times = [r[n]["median"] for r in rounds]
        cells = [
            n,
            " / ".join(spread(r[n]) for r in rounds),
            f"{1e3 * work.tokens / statistics.median(times):,.0f}",
            f"{statistics.median(r[n]['peak_mb'] for r in rounds):.0f}",
            f"{statistics.median(r[n]['first_step_s'] for r in rounds):.1f}",
            *(f"{share:.0%}" for share in shares(work, n, rounds)),
        ]
        for peer in peers:
            ratios = [r[peer]["median"] / r[n]["median"] for r in rounds]
            cells.append(" / ".join(f"{x:.2f}" for x in ratios))
        lines.append("| " + " | ".join(cells) + " |")
    gflops = [
        " / ".join(f"{r[rate]['gflops']:.0f}" for r in rounds) + f" ({rate})"
        for rate in rates
    ]
    versions = {k: v for n in names for k, v in rounds[0][n]["versions"].items()}
    made = ", ".join(f"{k} {v}" for k, v in versions.items())
    places = "; ".join(whereabouts(n, rounds) for n in names)
    lines.append(f"\nWhere the time goes, ms: {places}.")
    lines.append(f"\nGFLOP/s by round: {', '.join(gflops)}. Versions: {made}.")
    return "\n".join(lines)


def spread(found: dict) -> str:
    """Median (minimum, maximum), ms."""
    return f"{found['median']:.0f} ({min(found['ms']):.0f}, {max(found['ms']):.0f})"


def shares(work: workload.Workload, name: str, rounds: list[dict]) -> list[float]:
    """For each limit, the median of its time divided by the step's of the round."""
    shared = name == "rljax"
    alone = "alone_ms" if shared else "unshared_alone_ms"
    found = []
    for r in rounds:
        floors = [
            1e-6 * work.flops(shared) / r[rate]["gflops"] for rate in RATES if rate in r
        ]
        limits = [*floors, r[RATES[0]][alone]]
        found.append([limit / r[name]["median"] for limit in limits])
    return [statistics.median(share) for share in zip(*found, strict=True)]


def whereabouts(name: str, rounds: list[dict]) -> str:
    """The milliseconds of each timed part of a step, and of the rest."""
    parts = {
        part: statistics.median(r[name]["parts_ms"][part] for r in rounds)
        for part in rounds[0][name]["parts_ms"]
    }
    parts["rest"] = statistics.median(r[name]["median"] for r in rounds) - sum(
        parts.values()
    )
    return f"{name}: " + ", ".join(f"{part} {ms:.1f}" for part, ms in parts.items())


if __name__ == "__main__":
    main()
