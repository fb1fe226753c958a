"""A run that takes no time: two phases of a jitted scan on a toy state.

Used in the tests' process and, as `python toy_run.py ROOT FIRST STEP`, in processes of
its own that can be killed: see `sweep`.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from rljax.metric import Fault
from rljax.run import record as metrics
from rljax.run import train
from rljax.run.run_dir import open_run
from rljax.types import Prompts, TrainState

NUM_WARM, NUM_RL, K = 4, 8, 2
_TX = optax.adam(0.1)


class Stream:
    """Endless batches that depend on how many were handed out, which is the state."""

    def __init__(self, seed: int, steps: int = K):
        self.seed, self.steps, self.count = seed, steps, 0

    def __next__(self) -> Prompts:
        rng = np.random.default_rng((self.seed, self.count))
        self.count += 1
        shape = (self.steps, 2)
        return Prompts(
            tokens=rng.integers(0, 9, (*shape, 3)).astype(np.int32),
            length=np.full(shape, 3, np.int32),
            id=np.zeros(shape, np.int32),
        )

    def get_state(self):
        return {"count": self.count}

    def set_state(self, state):
        self.count = state["count"]


def make_state() -> TrainState:
    params = {
        "w": jnp.linspace(-1, 1, 6, dtype=jnp.float32).reshape(2, 3),
        "b": jnp.ones(5, jnp.bfloat16),
        "mask": jnp.array([True, False]),
    }
    return TrainState(
        params=params,
        optimizer=_TX.init(params["w"]),
        algorithm=((jnp.float32(0.5),), ()),
        gate=(),
        key=jax.random.key(0),
        step=jnp.int32(0),
    )


def train_step(state: TrainState, prompts: Prompts):
    """Noise from the run's key, the prompts and the algorithm's state all matter."""
    noise = jax.random.normal(jax.random.fold_in(state.key, state.step), (2, 3))
    target = prompts.tokens.astype(jnp.float32) + noise
    grads = state.params["w"] - state.algorithm[0][0] * target
    updates, optimizer = _TX.update(grads, state.optimizer)
    w = optax.apply_updates(state.params["w"], updates)
    new = state.replace(
        params={**state.params, "w": w, "b": state.params["b"] * 1.01},
        optimizer=optimizer,
        algorithm=((state.algorithm[0][0] * 0.99,), ()),
        step=state.step + 1,
    )
    return new, {
        "reward/mean": jnp.mean(w),
        "samples/tokens": jnp.float32(12),
        "update/refused_in_row": jnp.float32(0),
        "policy/fault/example": Fault(jnp.float32(0)),
    }


@functools.partial(jax.jit, donate_argnums=0)
def run(state: TrainState, prompts: Prompts):
    return jax.lax.scan(train_step, state, prompts)


def begin_rl(state: TrainState) -> TrainState:
    """A new optimiser state, and a change that shows when it is applied twice."""
    params = {**state.params, "b": state.params["b"] + 1}
    return state.replace(params=params, optimizer=_TX.init(params["w"]))


def evaluate(state: TrainState) -> dict[str, float]:
    return {"pass@1": float(jax.nn.sigmoid(jnp.mean(state.params["w"])))}


def phases(**changes) -> list[train.Phase]:
    """The two phases; `changes` are to both."""
    warm = train.Phase(
        name="warm start",
        run=run,
        stream=Stream(1),
        num_steps=NUM_WARM,
        steps_per_dispatch=K,
    )
    rl = train.Phase(
        name="rl",
        run=run,
        stream=Stream(2),
        num_steps=NUM_RL,
        steps_per_dispatch=K,
        begin=begin_rl,
        evaluate=evaluate,
        evaluate_every=3,
    )
    return [dataclasses.replace(phase, **changes) for phase in (warm, rl)]


class Disturbed(Stream):
    """A stream that calls `disturb` before it gives its `at`-th item."""

    def __init__(self, seed, at, disturb):
        super().__init__(seed)
        self.at, self.disturb = at, disturb

    def __next__(self):
        if self.count == self.at:
            self.disturb()
        return super().__next__()


class Crash(Exception):
    pass


def crash():
    raise Crash


def disturbed(index, at, disturb):
    made = phases()
    stream = Disturbed(made[index].stream.seed, at, disturb)
    made[index] = dataclasses.replace(made[index], stream=stream)
    return made


def go(run_dir, *, resume=False, checkpoint_every=2, **options) -> TrainState:
    with open_run(run_dir, {"seed": 0}, resume=resume) as run_dir:
        return train.train(
            options.pop("phases", None) or phases(),
            options.pop("state", None) or make_state(),
            run_dir,
            checkpoint_every=checkpoint_every,
            keep=options.pop("keep", 2),
            **options,
        )


def go_silently(run_dir, **options) -> TrainState:
    return go(run_dir, console=Console(file=io.StringIO()), **options)


def records(run_dir, kind, *names):
    """The named fields of all records of a kind."""
    found = metrics.read(run_dir / metrics.FILE)
    return [tuple(r[n] for n in names) for r in found if r["kind"] == kind]


def outcome(state: TrainState, run_dir) -> list[str]:
    """All that must not depend on how often a run was interrupted, as text."""
    state = state.replace(key=jax.random.key_data(state.key))
    leaves = [
        f"{jax.tree_util.keystr(path)} {leaf.dtype} {np.asarray(leaf).tobytes().hex()}"
        for path, leaf in jax.tree.leaves_with_path(state)
    ]
    times = ("seconds", "time/tokens_per_second")
    records = metrics.read(pathlib.Path(run_dir) / metrics.FILE)
    lines = [
        str({k: v for k, v in record.items() if k not in times})
        for record in records
        if record["kind"] != "event"
    ]
    return leaves + lines


def kill_at(number: int, run_dir: str) -> None:
    """Kills this process at the number-th operation on a file under `run_dir`."""
    seen = 0

    def hook(event: str, args) -> None:
        nonlocal seen
        changes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        changes |= event == "os.truncate"
        changes |= event == "open" and bool(args[2] & (os.O_WRONLY | os.O_RDWR))
        paths = [str(arg) for arg in args]
        if event in ("os.remove", "os.rmdir") and args[1] != -1:
            # shutil.rmtree names what it removes from within its folder.
            paths = [os.readlink(f"/proc/self/fd/{args[1]}")]
        if changes and any(path.startswith(run_dir) for path in paths):
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_child(work, *args) -> int:
    """Runs `work(*args)` in a fork of this process, which must not have used JAX."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with open(os.devnull, "w") as null:
                os.dup2(null.fileno(), 1)
            work(*args)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def finish(run_dir: str, resume: bool) -> None:
    state = go(run_dir, resume=resume)
    text = "\n".join(outcome(state, run_dir))
    pathlib.Path(run_dir + ".txt").write_text(text)


def start_and_die(run_dir: str, number: int) -> None:
    kill_at(number, run_dir)
    go(run_dir)


def sweep(root: str, first: int, step: int) -> None:
    """Kills runs at every step-th file operation, resumes them, and compares.

    Prints the numbers of operations that were tried and, of these, those after which
    the outcome was another one than that of an uninterrupted run.
    """
    import orbax.checkpoint  # noqa: F401  once, not in every child
    import tensorboardX  # noqa: F401

    in_child(finish, f"{root}/whole", False)
    want = pathlib.Path(f"{root}/whole.txt").read_text()
    number, tried, wrong = first, [], []
    while in_child(start_and_die, f"{root}/{number}", number) == -signal.SIGKILL:
        tried.append(number)
        code = in_child(finish, f"{root}/{number}", True)
        if code or pathlib.Path(f"{root}/{number}.txt").read_text() != want:
            wrong.append(number)
        number += step
    print(json.dumps({"tried": tried, "wrong": wrong}))


if __name__ == "__main__":
    sweep(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
