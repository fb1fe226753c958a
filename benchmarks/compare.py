"""rljax and its peers on the same work, interleaved, in environments of their own.

python -m benchmarks.compare --peers trl,tunix [--workloads W1] [--rounds 3]

Makes .peers/<peer> with pinned versions on first use, runs every implementation once
per round in turn, and writes RESULTS.md and results.json beside this file, in which the
tables of other workloads stay. Compare within a round: a shared host's speed drifts by
up to 1.6 within minutes.
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
RATES = ("XLA's products", "torch's products")  # of the latter if trl is a peer
CAVEATS = """\
Caveats: a small CPU machine that may be shared; compare within a round. The peers time
the gap between optimiser steps, rljax a dispatch of 5 steps over 5. The end token is
not obeyed, so every step samples exactly the same number of tokens everywhere.
`unshared` gives every sample its own copy of the prompt, as the peers do. rljax trains
in microbatches that stay in a core's cache, the same gradient; the peers, as in their
best settings known to us, in one. A floor is the step's matrix arithmetic, attention
left out, at the rate that forward products of a whole batch reach alone in the same
round, by XLA's own code and by torch's; `products alone` is the time of the step's own
products, each at its own shape and rate. The parts of rljax's step are programs of
their own, timed apart, so that their sum may differ from the step. One tiny model on
one CPU says nothing about accelerators or large models."""


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
        write(name, rounds)  # at once: the largest may take an hour


def write(name: str, rounds: list[dict]) -> None:
    """The workload's table beside those of the others, measured before."""
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()} {platform.system()}",
        "command": f"python {' '.join(sys.orig_argv[1:])}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rounds": rounds,
    }
    path.write_text(json.dumps(results, indent=1))
    tables = [
        f"{markdown(title, found['rounds'])}\n\nWritten by `{found['command']}`"
        f" on {found['date']}, {found['machine']}."
        for title, found in results.items()
    ]
    notes = HERE / "NOTES.md"
    parts = ["# Speed", CAVEATS, *tables, notes.read_text() if notes.exists() else ""]
    (HERE / "RESULTS.md").write_text("\n\n".join(parts).strip() + "\n")


def environment(name: str) -> pathlib.Path:
    """The python of a peer's environment, which is made if it is not there."""
    folder = HERE.parent / ".peers" / name
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        print(f"installing {', '.join(PEERS[name])}", flush=True)
        venv.create(folder, with_pip=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        # One after the other: torch first, so that nothing pulls in another build.
        first, *rest = PEERS[name]
        subprocess.run([*pip, first], check=True)
        subprocess.run([*pip, first, *rest], check=True)
        (folder / "installed").touch()
    return python


def commands(name: str, steps: int, pythons: dict) -> dict[str, list[str]]:
    """What is run in each round, in this order."""
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
    """One round: each command once, its last line of JSON."""
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
        print(f"{name:16s} {told(found)}", flush=True)
    return out


def told(found: dict) -> str:
    """A measurement in a few words."""
    if "median" in found:
        return f"{found['median']:8.1f} ms"
    return f"{found['gflops']:8.0f} GFLOP/s"


def markdown(name: str, rounds: list[dict]) -> str:
    """A table of one workload: a row for each implementation."""
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
    """Median, and in brackets the least and the most."""
    return f"{found['median']:.0f} ({min(found['ms']):.0f}, {max(found['ms']):.0f})"


def shares(work: workload.Workload, name: str, rounds: list[dict]) -> list[float]:
    """Medians of each limit by the time of the same round."""
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
    """The parts that were timed, and what is left of the step."""
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
