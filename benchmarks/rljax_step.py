"""Times rljax on a workload, as a user runs it: run loop, all metrics, files, display.

python -m benchmarks.rljax_step W1 [--steps 40] [--unshared]
`--unshared` gives every sample its own copy of the prompt, as the peers do.
"""

import argparse
import functools
import pathlib
import resource
import statistics
import tempfile
import time

START = time.perf_counter()

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import clock, rljax_program, workload  # noqa: E402
from rljax.learn import microbatch  # noqa: E402
from rljax.run import record, train  # noqa: E402

STEPS_PER_DISPATCH = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload", choices=workload.WORKLOADS)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--unshared", action="store_true")
    args = parser.parse_args()
    work = workload.WORKLOADS[args.workload]
    compiling = []

    def notice(event: str, duration_secs: float, **_) -> None:
        if "backend_compile" in event:
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(notice)
    built = rljax_program.build(work, STEPS_PER_DISPATCH, shared=not args.unshared)
    state = built.start(jax.random.key(0))
    run, first = built.program.fused(), []

    def noticing(state, prompts):
        state, found = run(state, prompts)
        if not first:
            jax.block_until_ready(found)
            first.append(time.perf_counter() - START)
        return state, found

    phase = built.phase(args.steps, noticing)
    with tempfile.TemporaryDirectory() as folder:
        state = train.train([phase], state, folder, checkpoint_every=args.steps)
        records = record.read(pathlib.Path(folder) / record.FILE)
    compiled = sum(compiling)
    parts = time_parts(built, work.num_microbatches, state)
    seconds = np.array([r["seconds"] for r in records if r["kind"] == "step"])
    ends = seconds[STEPS_PER_DISPATCH - 1 :: STEPS_PER_DISPATCH]
    per_step = np.diff(ends)[1:] / STEPS_PER_DISPATCH * 1e3
    workload.report(
        "rljax unshared" if args.unshared else "rljax",
        ms=per_step.tolist(),
        first_step_s=first[0],
        compile_s=compiled,
        parts_ms=parts,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        versions={"jax": jax.__version__},
    )


def time_parts(built: rljax_program.Built, pieces: int, state) -> dict[str, float]:
    """Milliseconds of the parts of a step, timed as separate programs; medians of 5.

    "weigh and update" is the update minus its forward pass, "measure".
    """
    program = built.program
    prompts = jax.tree.map(lambda x: x[0], next(built.stream(1)))

    def measure(params, rollout):
        def one(credits, rows, carry):
            return carry, (), built.policy.measure(params, rows.prompts, rows.samples)

        cut = microbatch.Pieces(pieces)
        return microbatch.over_pieces(one, (), rollout, (), cut)[2]

    act, verify = jax.jit(program.act), jax.jit(rljax_program.verify)
    rollout = act(state, prompts)
    rollout = rollout.replace(verdict=verify(prompts, rollout.samples))
    parts = {
        "sample": (act, state, prompts),
        "verify": (verify, prompts, rollout.samples),
        "measure": (jax.jit(measure), state.params, rollout),
        "update": (jax.jit(program.learner.learn), state, rollout),
    }
    calls = {name: functools.partial(*part) for name, part in parts.items()}
    times = clock.in_turn(calls, 5)
    found = {name: 1e3 * statistics.median(times[name]) for name in parts}
    found["weigh and update"] = found.pop("update") - found["measure"]
    return found


if __name__ == "__main__":
    main()
