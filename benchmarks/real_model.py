"""Compares rljax and TRL on SmolLM2-135M-Instruct: time, memory and reward per step.

python -m benchmarks.real_model [--model FOLDER] [--steps 12] [--kinds "as used"]

Task, sizes and learning rate are those of `experiments.real`. Both trainers learn from
the same questions in the same order, with the model's own chat template. They take
steps in turn. Two kinds of runs:

- like for like: both use float32, GRPO, the same number of microbatches, and the same
  optimiser, schedule and clipping.
- as used: rljax runs `experiments.real` (FADE, bfloat16 if the CPU has units for it),
  TRL its defaults (bfloat16 autocast, gradient checkpointing, DAPO's loss, a learning
  rate that decays linearly from the first step).

12 steps of both kinds take about half an hour on two quiet cores, 40 steps 100 minutes.
Needs trl, and up to 16 GiB. Adds to real_model.json, and writes real_model.md from it.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import IO, Any

import numpy as np

from benchmarks import results
from experiments import cli, optimizer, real
from rljax.task import arithmetic

KINDS = ("like for like", "as used")
PEERS = ("trl", "rljax")  # in the order of their turns
NAME = "real_model"


class Peer:
    """A trainer in another process, which takes a step on request."""

    def __init__(self, name: str, kind: str, work: pathlib.Path, log: IO[str]):
        module = f"benchmarks.{name}_real"
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(work), "--kind", kind],
            cwd=results.HERE.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

    def step(self) -> dict[str, Any]:
        """Makes the trainer take a step; returns its measurements."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("step\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, ValueError):
            self._process.wait()
            self._log.seek(0)
            sys.exit(f"{self._process.args} failed:\n{self._log.read()[-3000:]}")

    def close(self) -> None:
        """Kills the process."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2", help="folder of a chat model")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompts", type=int, default=16, help="per step")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument(
        "--trl-pieces", type=int, help="TRL's microbatches; default: rljax's number"
    )
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if unknown := sorted({*kinds} - {*KINDS}):
        sys.exit(f"--kinds knows {', '.join(KINDS)}, got {', '.join(unknown)}")
    config = real.Config(
        model=args.model,
        num_steps=args.steps,
        num_prompts=args.prompts,
    )
    try:
        work = described(config)
    except ValueError as error:
        cli.fail(error)
    path = results.HERE / f"{NAME}.json"
    if args.trl_pieces is not None:
        work["trl_pieces"] = args.trl_pieces
    found = json.loads(path.read_text())["results"] if path.exists() else {}
    for kind in kinds:
        for rows in steps(kind, work, args.steps):
            found[kind] = rows
            body = f"{text(found)}\n\n{schedules(work['rates'])}"
            results.write(NAME, "A real model, beside TRL", body, found)


def described(config: real.Config) -> dict[str, Any]:
    """The input of both trainers: config, learning rates, and questions in order."""
    (experiment,) = real.build(config)
    if (metadata := experiment.model.metadata) is None:
        raise ValueError(
            f"--model must be a folder that TRL can load, got {config.model!r}; pass"
            " one."
        )
    train = arithmetic.splits().train  # ids of prompts count its problems first
    rate = optimizer.linear_decay(config.learning_rate, config.num_steps)
    rows = [
        train[i].problem
        for _ in range(config.num_steps)
        for i in next(experiment.prompts).id[0]
    ]
    return {
        "config": dataclasses.asdict(config),
        "trl_pieces": config.num_microbatches,
        "folder": str(metadata.folder.absolute()),
        "rates": [np.asarray(rate(i)).item() for i in range(config.num_steps)],
        "questions": [{"question": p.question, "answer": p.answer} for p in rows],
    }


def steps(kind: str, work: dict[str, Any], count: int):
    """Yields, after every step, trainer -> measurements of its steps so far."""
    rows: dict[str, list] = {name: [] for name in PEERS}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = pathlib.Path(folder) / "work.json"
        path.write_text(json.dumps(work))
        peers = {}
        for name in PEERS:
            log = stack.enter_context(open(path.with_name(name), "w+"))
            peers[name] = Peer(name, kind, path, log)
            stack.callback(peers[name].close)
        for _ in range(count):
            for name, peer in peers.items():
                rows[name].append(peer.step())
            yield rows


def text(found: dict[str, dict[str, list]]) -> str:
    """A section with tables for each kind of run."""
    return "\n\n".join(f"## {kind}\n\n{section(rows)}" for kind, rows in found.items())


def schedules(rates: list[float]) -> str:
    """A sentence on the schedules, which explain why the learning curves differ."""
    count, first = len(rates), min(5, len(rates))
    ours = sum(rates[:first]) / max(rates) if max(rates) else 0.0
    default = sum(1 - i / count for i in range(first))
    return (
        f"The learning rates of the first {first} of {count} steps add up to"
        f" {ours:.2f} peaks with rljax's schedule, which starts at 0 and which both use"
        " like for like. With TRL's default, which decays from its peak to 0, they add"
        f" up to {default:.2f}."
    )


def section(rows: dict[str, list]) -> str:
    """A table of times and memory, the speed-up, and a table of rewards by step."""
    lines = []
    for name, taken in rows.items():
        later = [row["seconds"] for row in taken[1:]] or [taken[0]["seconds"]]
        lines.append(
            (
                name,
                f"{statistics.median(later):.2f} ({min(later):.2f}, {max(later):.2f})",
                statistics.mean(row["tokens"] for row in taken),
                max(row["peak_mb"] for row in taken),
                taken[0]["ready_s"] + taken[0]["seconds"],
            )
        )
    head = ("", "s/step (least, most)", "tokens/step", "peak MB", "first step, s")
    pairs = list(zip(rows["trl"], rows["rljax"], strict=True))[1:]
    ratios = [trl["seconds"] / ours["seconds"] for trl, ours in pairs]
    told = ""
    if ratios:
        told = (
            f"\n\nTRL's time per step over rljax's in the same round: median"
            f" {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}."
        )
    curve = [
        (i + 1, *(f"{rows[n][i][key]:.3f}" for key in CURVES for n in PEERS))
        for i in range(len(rows["rljax"]))
    ]
    names = [f"{key}, {name}" for key in CURVES for name in PEERS]
    return (
        f"{results.table(head, lines)}{told}\n\n"
        f"{results.table(['step', *names], curve)}"
    )


CURVES = ("reward", "finished", "entropy")


if __name__ == "__main__":
    main()
