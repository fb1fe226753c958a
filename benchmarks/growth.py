"""Measures how step time and memory grow with G, T, P, depth and width.

python -m benchmarks.growth [--workload small] [--factors 1,2,4,8] [--rounds 5]

One size at a time is multiplied; the others are the workload's. Times are medians over
rounds in which all sizes run in turn. Memory is that of the compiled program. Both are
compared with arithmetic.
"""

import argparse
import dataclasses
import statistics
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import results, rljax_program, workload
from rljax.plan import cost

STEPS_PER_DISPATCH = 2
AXES = {
    "G": ("num_samples",),
    "T": ("new_tokens",),
    "P": ("num_prompts",),
    "depth": ("num_layers",),
    "width": ("d_model", "num_heads", "d_ff"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=workload.WORKLOADS, default="small")
    parser.add_argument("--factors", default="1,2,4,8")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    base = workload.WORKLOADS[args.workload]
    factors = [int(factor) for factor in args.factors.split(",")]
    works = {
        (axis, factor): grown(base, fields, factor)
        for axis, fields in AXES.items()
        for factor in factors
    }
    cases = {}
    for work in works.values():  # factor 1 gives the same workload on every axis
        if work not in cases:
            cases[work] = Case(work)
            print(f"compiled {work}", flush=True)
    for _ in range(args.rounds):
        for case in cases.values():
            case.run()
    found = [
        {"axis": axis, "size": vars(work)[AXES[axis][0]], **cases[work].found()}
        for (axis, _), work in works.items()
    ]
    body = f"Workload `{args.workload}`: {base}.\n\n{exponents(found)}\n\n{rows(found)}"
    results.write("growth", "Growth", body, found, draw(found))


def grown(base: workload.Workload, fields, factor: int) -> workload.Workload:
    """The workload with the given sizes multiplied."""
    changes = {name: vars(base)[name] * factor for name in fields}
    return dataclasses.replace(base, **changes)


class Case:
    """A compiled program; `run` times one dispatch."""

    def __init__(self, work: workload.Workload):
        built = rljax_program.build(work, STEPS_PER_DISPATCH)
        self._program, self._stream = built.program, built.stream()
        self._state = built.start(jax.random.key(0))
        prompts = next(self._stream)
        run = self._program.fused()
        self._compiled = run.lower(self._state, prompts).compile()
        self.times = []
        self.run()
        self.times.clear()

    def run(self) -> None:
        """Runs one dispatch and records its seconds per step."""
        prompts = next(self._stream)
        start = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._compiled(self._state, prompts))
        self.times.append((time.perf_counter() - start) / STEPS_PER_DISPATCH)

    def found(self) -> dict[str, float]:
        """Time and memory as measured, and by arithmetic."""
        sizes = self._program.sizes()
        memory = cost.memory(self._program, sizes, self._compiled)
        parts = memory.parameters + memory.optimizer + memory.gradients + memory.cache
        return {
            "ms": 1e3 * statistics.median(self.times),
            "gflop": sum(cost.decoder_flops(sizes)) / 1e9,
            "mib": memory.total / 2**20,
            "parts_mib": parts / 2**20,
        }


def exponents(found: list[dict]) -> str:
    """A table of growth exponents between the ends of each axis."""

    def exponent(cases, name):
        first, last = cases[0], cases[-1]
        ratio = last["size"] / first["size"]
        return float(np.log(last[name] / first[name]) / np.log(ratio))

    names = ("ms", "gflop", "mib", "parts_mib")
    lines = []
    for axis in AXES:
        cases = [case for case in found if case["axis"] == axis]
        if len(cases) > 1:
            powers = [f"{exponent(cases, name):.2f}" for name in names]
            span = f"{cases[0]['size']} to {cases[-1]['size']}"
            lines.append([axis, span, *powers])
    head = ["", "sizes", "time", "arithmetic", "memory", "state, gradients, cache"]
    return "Growth exponents; 1 is linear.\n\n" + results.table(head, lines)


def rows(found: list[dict]) -> str:
    """The table of all measurements."""
    head = ["", "size", "ms/step", "GFLOP", "GFLOP/s", "MiB", "by arithmetic, MiB"]
    return results.table(
        head,
        [
            (
                case["axis"],
                case["size"],
                case["ms"],
                case["gflop"],
                1e3 * case["gflop"] / case["ms"],
                case["mib"],
                case["parts_mib"],
            )
            for case in found
        ],
    )


def draw(found: list[dict]):
    """Plots time and memory against each size, with arithmetic as dashed lines."""
    figure, axes = plt.subplots(
        2, len(AXES), figsize=(3 * len(AXES), 6), layout="constrained"
    )
    for column, name in zip(axes.T, AXES, strict=True):
        cases = [case for case in found if case["axis"] == name]
        sizes, ms, gflop, mib, parts = (
            [case[key] for case in cases]
            for key in ("size", "ms", "gflop", "mib", "parts_mib")
        )
        best = max(g / m for g, m in zip(gflop, ms, strict=True))
        column[0].plot(sizes, ms, "o-", label="measured")
        column[0].plot(
            sizes, [g / best for g in gflop], "k--", label="arithmetic, best rate"
        )
        column[1].plot(sizes, mib, "o-", label="compiled program")
        column[1].plot(sizes, parts, "k--", label="state, gradients, cache")
        for panel in column:
            panel.loglog(base=2)
            panel.set_xlabel(name)
    axes[0, 0].set_ylabel("ms per step")
    axes[1, 0].set_ylabel("MiB")
    for panel in axes[:, 0]:
        panel.legend()
    return figure


if __name__ == "__main__":
    main()
