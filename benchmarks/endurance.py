"""Measures host memory, step time and host overhead over thousands of steps.

python -m benchmarks.endurance [--workload small] [--steps 3000] [--rounds 5]

Trains with the run loop as a user does, with all metrics, files and checkpoints. The
overhead of the host is measured in two ways. Idle share: the fraction of time between
the end of a dispatch and the start of the next one, when the device has no work.
Slowdown: the time of the run loop against a bare loop that only starts dispatches. On a
CPU the host's work also takes cores from the device; the slowdown includes that.
"""

import argparse
import itertools
import queue
import statistics
import sys
import tempfile
import threading
import time

import jax
import matplotlib.pyplot as plt
import numpy as np

from benchmarks import results, rljax_program, workload
from rljax.run import train

STEPS_PER_DISPATCH = 20
# A quantity grows if it changes by more than this fraction of its median in a run.
GROWTH = {"host memory": 0.01, "step time": 0.03}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=workload.WORKLOADS, default="small")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--checkpoint-every", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    sys.setswitchinterval(1e-4)  # the watching thread must not wait for the run loop
    work = workload.WORKLOADS[args.workload]
    built = rljax_program.build(work, STEPS_PER_DISPATCH)
    run = built.program.fused()
    long = endure(built, run, args.steps, args.checkpoint_every)
    slower = [
        slowdown(built, run, 10 * STEPS_PER_DISPATCH, args.checkpoint_every)
        for _ in range(args.rounds)
    ]
    steps = STEPS_PER_DISPATCH * np.arange(1, len(long.done) + 1)
    memory = np.array(long.memory) / 2**20
    ms = 1e3 * np.diff(long.done) / STEPS_PER_DISPATCH
    lines = [
        verdict("host memory", "MiB", steps, memory),
        verdict("step time", "ms", steps[1:], ms),
    ]
    told = " / ".join(f"{100 * x:.1f} %" for x in slower)
    body = (
        f"Workload `{args.workload}`: {work}; {args.steps} steps,"
        f" {STEPS_PER_DISPATCH} per dispatch, a checkpoint every"
        f" {args.checkpoint_every}.\n\n"
        + results.table(["", "median", "change over the run", "verdict"], lines)
        + f"\n\nThe device was idle for {100 * long.idle_share():.2f} % of the time."
        f" The host loop is slower than a bare one by {told} (by round; median"
        f" {100 * statistics.median(slower):.1f} %)."
    )
    found = {
        "steps": steps.tolist(),
        "memory_mib": memory.tolist(),
        "step_ms": ms.tolist(),
        "idle_share": long.idle_share(),
        "slowdown": slower,
    }
    results.write("endurance", "Endurance", body, found, draw(steps, memory, ms))


class Watch:
    """Wraps a program and records when each dispatch was started and finished."""

    def __init__(self, run):
        self._run, self._pending = run, queue.SimpleQueue()
        self.asked, self.done, self.memory = [], [], []
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._thread.start()

    def __call__(self, state, prompts):
        self.asked.append(time.perf_counter())
        self.memory.append(host_memory())
        state, metrics = self._run(state, prompts)
        self._pending.put(metrics)
        return state, metrics

    def _wait(self):
        while (metrics := self._pending.get()) is not None:
            jax.block_until_ready(metrics)
            self.done.append(time.perf_counter())

    def close(self):
        self._pending.put(None)
        self._thread.join()

    def idle_share(self) -> float:
        """The fraction of time in which the device had no work."""
        waits = (asked - done for asked, done in zip(self.asked[1:], self.done))
        return sum(max(0.0, wait) for wait in waits) / (self.done[-1] - self.done[0])


def endure(built, run, num_steps: int, checkpoint_every: int) -> Watch:
    """Trains with the run loop and returns the record of its dispatches."""
    watch = Watch(run)
    state = built.start(jax.random.key(0))
    phase = built.phase(num_steps, watch)
    with tempfile.TemporaryDirectory() as folder:
        train.train([phase], state, folder, checkpoint_every=checkpoint_every)
    watch.close()
    return watch


def slowdown(built, run, num_steps: int, checkpoint_every: int) -> float:
    """The time of the run loop divided by that of a bare loop, minus 1."""
    state, stream = built.start(jax.random.key(0)), built.stream()
    batches = [next(stream) for _ in range(num_steps // STEPS_PER_DISPATCH)]
    state, metrics = jax.block_until_ready(run(state, batches[0]))
    start = time.perf_counter()
    for batch in batches[1:]:
        state, metrics = run(state, batch)
    jax.block_until_ready(metrics)
    bare = time.perf_counter() - start
    watch = endure(built, run, num_steps, checkpoint_every)
    return (watch.done[-1] - watch.done[0]) / bare - 1


def host_memory() -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def verdict(name: str, unit: str, steps, values) -> tuple[str, ...]:
    """A row of the table: whether a quantity grows over the run.

    The slope is the median over all pairs of points (Theil-Sen), which is robust
    against outliers. The first tenth of the run is left out as warm-up.
    """
    first = len(values) // 10
    x, y = np.asarray(steps)[first:], np.asarray(values)[first:]
    pairs = itertools.combinations(range(len(x)), 2)
    slope = np.median([(y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs])
    middle, change = np.median(y), slope * (x[-1] - x[0])
    grows = change > GROWTH[name] * middle
    return (
        name,
        f"{middle:.4g} {unit}",
        f"{change:+.3g} {unit} ({100 * change / middle:+.2f} %)",
        f"grows by more than {100 * GROWTH[name]:.0f} %" if grows else "no growth",
    )


def draw(steps, memory, ms):
    """A figure of memory and step time over the run."""
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, layout="constrained"
    )
    top.plot(steps, memory)
    top.set_ylabel("host memory, MiB")
    bottom.plot(steps[1:], ms, ".")
    bottom.set_ylim(0)
    bottom.set_ylabel("ms per step")
    bottom.set_xlabel("training steps")
    return figure


if __name__ == "__main__":
    main()
