"""The toy run on a mesh over several processes: `python several_toy.py RUN_DIR ...`.

Prints a line `outcome ...` that must not depend on processes or interruptions.
"""

import argparse
import dataclasses
import functools
import hashlib
import os
import pathlib
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import toy_run

from rljax import mesh, processes
from rljax.run import cluster, same, train
from rljax.run.run_dir import open_run
from rljax.types import Prompts

P = 8  # prompts of a step: rows for up to 8 devices


class Stream(toy_run.Stream):
    """Batches of P prompts; `disturb(stream)` comes before the `at`-th."""

    def __init__(self, seed: int, at: int = -1, disturb=None):
        super().__init__(seed)
        self._at, self._disturb = at, disturb

    def __next__(self):
        if self.count == self._at:
            self._disturb(self)
        rng = np.random.default_rng((self.seed, self.count))
        self.count += 1
        shape = (self.steps, P)
        return Prompts(
            tokens=rng.integers(0, 9, (*shape, 3)).astype(np.int32),
            length=np.full(shape, 3, np.int32),
            id=np.zeros(shape, np.int32),
        )


@functools.partial(jax.jit, donate_argnums=0)
def run(state, prompts):
    """The toy's steps on sums over prompts: whole numbers, exact on every mesh."""

    def step(state, batch):
        tokens = jnp.sum(batch.tokens.reshape(P // 2, 2, 3), axis=0)
        state, metrics = toy_run.train_step(state, batch.replace(tokens=tokens))
        spread = state.params["spread"] + batch.tokens[:, 0]
        return state.replace(params={**state.params, "spread": spread}), metrics

    return jax.lax.scan(step, state, prompts)


def disturbance(kind: str, mark: pathlib.Path):
    """What happens in the process it is asked for."""

    def sleep(stream):
        mark.touch()
        time.sleep(3)  # for a signal from outside to arrive before the dispatch

    def other_rows(stream):
        stream.seed += 1

    def kill(stream):
        os.kill(os.getpid(), signal.SIGKILL)

    def fail(stream):
        raise OSError("the disk is on fire")

    return {"sleep": sleep, "rows": other_rows, "kill": kill, "fail": fail}[kind]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=pathlib.Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=float, default=0.0)
    parser.add_argument("--local", action="store_true", help="a state of its own each")
    parser.add_argument("--disturb", help="KIND:PROCESS, in the second phase")
    options = parser.parse_args()
    with cluster.joined():
        state = go(options)
        state = processes.fetch(state)
        leaves = [x for x in toy_run.outcome(state, options.run_dir) if x[0] == "."]
        digest = hashlib.sha256("\n".join(leaves).encode()).hexdigest()[:16]
        print(f"outcome {digest} of {processes.name(processes.index())}")


def go(options):
    devices = mesh.make()
    streams = [Stream(1), Stream(2)]
    if options.disturb:
        kind, process = options.disturb.split(":")
        if processes.index() == int(process):
            mark = options.run_dir.with_suffix(".mark")
            streams[1] = Stream(2, 1, disturbance(kind, mark))

    def placing(state, prompts):
        return run(state, mesh.shard_prompts(prompts, devices, axis=1))

    def evaluate(state):
        params = processes.fetch(state.params)
        return {"pass@1": float(params["w"].mean()), "sum": int(params["spread"].sum())}

    phases = [
        dataclasses.replace(phase, run=placing, stream=stream)
        for phase, stream in zip(toy_run.phases(), streams, strict=True)
    ]
    phases[1] = dataclasses.replace(phases[1], evaluate=evaluate)
    config = {"seed": options.seed}
    same.require_same_program(config)
    state = toy_run.make_state()
    params = {**state.params, "w": state.params["w"] + options.weights}
    here = mesh.make(jax.local_devices()) if options.local else devices
    state = mesh.replicate(state.replace(params=params), here)
    # A parameter of which no process has the whole.
    spread = mesh.shard_prompts(np.arange(P, dtype=np.int32), devices)
    state = state.replace(params={**state.params, "spread": spread})
    with (
        mesh.using(devices),
        open_run(options.run_dir, config, resume=options.resume) as run_dir,
    ):
        return train.train(phases, state, run_dir, checkpoint_every=2, keep=2)


if __name__ == "__main__":
    main()
