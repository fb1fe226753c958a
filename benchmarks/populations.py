"""Compares training many seeds of a tiny model in one vmapped program and one by one.

python -m benchmarks.populations [--seeds 8,64] [--workload tiny] [--rounds 5]

Both ways take the same steps from the same start for every seed, which has its own
prompts. They run in turn.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results, rljax_program, workload

STEPS_PER_DISPATCH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="8,64")
    parser.add_argument("--workload", choices=workload.WORKLOADS, default="tiny")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    work = workload.WORKLOADS[args.workload]
    built = rljax_program.build(work, STEPS_PER_DISPATCH)
    found = []
    for seeds in map(int, args.seeds.split(",")):
        found.append(measure(built, seeds, args.rounds))
        print(found[-1], flush=True)
    table = results.table(
        [
            "seeds",
            "one program, ms",
            "one after another, ms",
            "times faster",
            "by round",
        ],
        [
            (
                case["seeds"],
                statistics.median(case["together_ms"]),
                statistics.median(case["apart_ms"]),
                statistics.median(ratios := faster(case)),
                " / ".join(f"{ratio:.2f}" for ratio in ratios),
            )
            for case in found
        ],
    )
    body = (
        f"Workload `{args.workload}`: {work}. A training step of all seeds, medians"
        f" over rounds of {STEPS_PER_DISPATCH} steps.\n\n{table}"
    )
    results.write("populations", "Populations", body, found)


def measure(built: rljax_program.Built, seeds: int, rounds: int) -> dict:
    """Milliseconds per training step of all seeds, by round."""
    streams = [built.stream(seed) for seed in range(seeds)]
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    run = built.program.fused()
    many = jax.jit(jax.vmap(run), donate_argnums=0)
    state = jax.jit(jax.vmap(built.start))(keys)
    states = [built.start(key) for key in keys]

    def together(batches):
        nonlocal state
        state, metrics = many(state, jax.tree.map(lambda *x: np.stack(x), *batches))
        return metrics

    def apart(batches):
        out = []
        for i, batch in enumerate(batches):
            states[i], metrics = run(states[i], batch)
            out.append(metrics)
        return out

    times = {together: [], apart: []}
    for _ in range(rounds + 1):
        batches = [next(stream) for stream in streams]
        for way, taken in times.items():
            start = time.perf_counter()
            jax.block_until_ready(way(batches))
            taken.append(1e3 * (time.perf_counter() - start) / STEPS_PER_DISPATCH)
    return {
        "seeds": seeds,
        "together_ms": times[together][1:],  # the first compiles
        "apart_ms": times[apart][1:],
    }


def faster(case: dict) -> list[float]:
    """The speed-up of one program over one by one, by round."""
    pairs = zip(case["apart_ms"], case["together_ms"], strict=True)
    return [apart / together for apart, together in pairs]


if __name__ == "__main__":
    main()
