"""The run loop: dispatches training steps, and evaluates, saves and records in between.

While the device works on a dispatch, the host records the metrics of the previous one.
The host waits for the device only before an evaluation or a checkpoint. A run is a list
of phases, with a folder:

    config.json  metrics.jsonl  completions.jsonl  tensorboard/  checkpoints/

A run can be killed at any moment; a resume continues from its newest checkpoint, bit
for bit. Several processes run the same loop in lockstep; only the leader writes records
and shows progress.
"""

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from etils import epath
from rich.console import Console

from rljax import digest, metric, processes
from rljax.run import (
    checkpoint,
    checkpoint_folder,
    display,
    fault,
    ownership,
    pace,
    shown,
)
from rljax.run.host import Host, Options, open_host
from rljax.run.phase import COMPLETIONS, Metrics, Phase, phase_of, templates_of
from rljax.run.writer import Writer
from rljax.types import Prompts, TrainState

_SHOWN = 3  # completions of an evaluation that the display shows


class Stopped(SystemExit):
    """The run stopped on request, after a save; `code` is 128 + the signal's number."""

    def __init__(self, by: signal.Signals):
        super().__init__(128 + by)


def train(
    phases: Sequence[Phase],
    state: TrainState,
    run_dir: str | os.PathLike,
    *,
    checkpoint_every: int,
    keep: int = 3,
    max_refused: int = 10,
    checkpoint_dir: epath.PathLike | None = None,
    writers: Sequence[Writer] = (),
    console: Console | None = None,
) -> TrainState:
    """Runs the phases in order, starting from the newest checkpoint if there is one.

    Args:
      phases: the parts of the run, at least one, with different names. A resumed run
        must have the same phases.
      state: at the start of the first phase; consumed. A resumed run reads only its
        structure and shardings; its memory is freed before the restore if the caller
        keeps no reference.
      run_dir: a folder from `run_dir.open_run`; on a file system.
      checkpoint_every: training steps between checkpoints, which are saved at the next
        dispatch boundary. The last step of each phase is always saved.
      keep: number of newest checkpoints to keep.
      max_refused: the run stops after so many refused optimiser steps in a row.
      checkpoint_dir: a folder for the checkpoints of this run only; may be in a bucket
        (gs://...). None: `checkpoints` in the run folder.
      writers: further writers of records, beside `metrics.jsonl` and `tensorboard/`; if
        there are several processes, only the leader's are used.
      console: to show progress on; None: standard output.

    Returns:
      The state after the last phase.

    Raises:
      ValueError: if the phases cannot run, the checkpoints do not fit them, or another
        process trains in the folder.
      RunFault: if a `metric.Fault` is not 0; if `max_refused` updates in a row were
        refused; if the verifier failed for all samples of `fault.MAX_FAILED` steps in a
        row; if parameters or optimiser state hold NaN before a save. The last good
        checkpoint is kept.
      Stopped: after SIGTERM or Ctrl-C, once the state is saved.
    """
    folder = ownership.local(run_dir)
    options = Options(
        phases=phases,
        run_dir=folder,
        checkpoint_dir=epath.Path(checkpoint_dir or folder / "checkpoints"),
        checkpoint_every=checkpoint_every,
        keep=keep,
        max_refused=max_refused,
        writers=writers,
        console=console,
    )
    with contextlib.ExitStack() as stack:
        owned = ownership.ensured(folder)
        stack.enter_context(processes.led("the owner of the run folder", owned))
        processes.require_shared(state, "the state to train from")
        checkpoint_folder.require_shared(options.checkpoint_dir)
        newest = checkpoint.newest(options.checkpoint_dir)
        templates, state = templates_of(phases, state, newest)  # frees its memory
        found, restored, corrupt = checkpoint.restore_newest(
            options.checkpoint_dir, lambda found: templates[phase_of(phases, found)]
        )
        index, done = 0, 0
        if found is None:
            fault.require_finite(state)
            _require_same(state)
        else:
            state = restored
            index, done = found.info["phase"], found.info["phase_step"]
            phases[index].stream.set_state(found.info["stream"])
        with open_host(options, found) as host:
            for problem in corrupt:
                host.report("checkpoint/corrupt", problem)
            for i in range(index, len(phases)):
                state = _run_phase(host, i, state, done)
                done = 0
            host.checkpoints.wait()
            if (by := host.stop_by()) is not None:
                _stop(host, by, host.board.step)
    return state


def _require_same(state: TrainState) -> None:
    """Raises if processes start from different states, such as other files' weights."""
    if processes.count() > 1:
        processes.require_same(
            "the state to train from",
            {leaf: found.digest for leaf, found in digest.examine(state).items()},
            "Copy the same files to all hosts, and make the state with the same seed.",
        )


def _run_phase(host: Host, index: int, state: TrainState, done: int) -> TrainState:
    """Runs the rest of a phase, of which `done` training steps are done."""
    phase, offset = host.options.phases[index], host.options.offset(index)
    host.board.phase, host.board.step = phase.name, offset + done
    if done == 0:
        state = phase.begin(state)
        before = host.options.phases[index - 1].evaluate if index else None
        if before is None:
            _evaluate(host, phase, state)
    if (by := host.stop_by()) is not None:
        _stop(host, by, offset + done)
    speed = pace.Pace(host.clock)
    pending = None
    while done < phase.num_steps:
        prompts = _next_prompts(phase, done)
        if pending is None and speed.is_first:
            host.screen.working(f"[{phase.name}] compiling the training step")
        state, metrics = phase.run(state, prompts)
        if pending is not None:
            _record(host, speed, pending)
        pending = _Pending(phase, offset + done, metrics)
        start, done = done, done + phase.steps_per_dispatch
        end = done == phase.num_steps
        save = end or _crossed(start, done, host.options.checkpoint_every)
        evaluate = phase.evaluate is not None and (
            end or _crossed(start, done, phase.evaluate_every)
        )
        _require_same_prompts(phase, prompts)
        stop_by = host.stop_by()
        if save or evaluate or stop_by is not None:
            _record(host, speed, pending)
            pending = None
            if evaluate:
                _evaluate(host, phase, state)
                stop_by = host.stop_by()
            if save or stop_by is not None:
                _save(host, index, done, state)
            if stop_by is not None:
                _stop(host, stop_by, offset + done)
            speed.restart()
        host.checkpoints.poll()
    return state


def _require_same_prompts(phase: Phase, prompts: Prompts) -> None:
    """Raises if the streams of processes differ, before the result is saved.

    JAX assumes, without a check, that host arrays are equal in all processes. If each
    process had its own part of a batch, it would train on it as if it were the whole.
    """
    if processes.count() > 1:
        processes.require_same(
            f"the batch of phase {phase.name!r}",
            {"its fingerprint": digest.fingerprint(prompts)},
            "Let the stream give the whole batch to every process; the mesh splits it.",
        )


def _crossed(start: int, done: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (start, done]."""
    return done // every > start // every


class _Pending(NamedTuple):
    """A dispatch whose metrics have not been read yet.

    before: training steps before the dispatch.
    """

    phase: Phase
    before: int
    metrics: Metrics


def _record(host: Host, speed: pace.Pace, pending: _Pending) -> None:
    """Waits for a dispatch, records its steps, and raises if it reports a fault."""
    phase, before = pending.phase, pending.before
    found = jax.device_get(pending.metrics)
    read = {name: np.asarray(v) for name, v in metric.numbers(found).items()}
    count = phase.steps_per_dispatch
    _require_rows(phase, read)
    last = before + count
    start, ends = speed.mark, speed.dispatch(last, count)
    rate = pace.tokens_per_second(read, ends[-1] - start)
    if rate is not None:
        read["time/tokens_per_second"] = np.full(count, rate, np.float32)
    records = [
        {
            "kind": "step",
            "phase": phase.name,
            "step": before + i + 1,
            "seconds": round(float(ends[i]), 3),
            **{name: value[i] for name, value in read.items()},
        }
        for i in range(count)
    ]
    board = host.board
    board.step, board.seconds, board.tokens_per_second = last, ends[-1], rate
    board.left = speed.seconds_left(last, board.last)
    board.metrics = {name: float(value[-1]) for name, value in read.items()}
    host.write(records)
    host.screen.update()
    problem = fault.find_fault(before, found) or host.refusals.find(before, read)
    if problem is not None:
        _fault(host, problem)


def _require_rows(phase: Phase, metrics: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless each metric has one value per step of a dispatch."""
    count = phase.steps_per_dispatch
    for name, value in metrics.items():
        if value.shape != (count,):
            raise ValueError(
                f"metrics must be f32[{count}], a number for each of the steps of a"
                f" dispatch, got {name} of shape {value.shape} in phase"
                f" {phase.name!r}; let the stream give steps_per_dispatch steps."
            )


def _fault(host: Host, problem: str) -> NoReturn:
    """Reports a fault, and raises it once the running save has ended."""
    host.checkpoints.wait()
    problem += f"; last good checkpoint: {host.checkpoints.latest}"
    host.report("run/fault", problem)
    raise fault.RunFault(problem)


def _evaluate(host: Host, phase: Phase, state: TrainState) -> None:
    if phase.evaluate is None:
        return
    host.board.doing = "evaluating"
    host.screen.working(f"[{phase.name}] evaluating after step {host.board.step}")
    found = dict(phase.evaluate(state))
    texts: Any = found.pop(COMPLETIONS, ())
    values = {name: float(value) for name, value in found.items()}
    host.board.doing, host.board.evaluation = "", values
    place = host.place()
    evaluation = {"kind": "evaluation", **place, **values}
    host.write([evaluation, *({"kind": "completion", **place, **t} for t in texts)])
    for entry in texts[:_SHOWN]:
        host.screen.say(shown.completion(entry, longest=200))
    text = ", ".join(f"{k} {text}" for k, text in display.estimates(values).items())
    host.screen.say(f"[{phase.name}] evaluation after step {host.board.step}: {text}")


def _save(host: Host, index: int, done: int, state: TrainState) -> None:
    phase, step = host.options.phases[index], host.options.offset(index) + done
    run_dir = host.options.run_dir
    other = processes.from_leader(
        "the owner of the run folder", lambda: ownership.taken_over_by(run_dir)
    )
    if other is not None:  # raised without a report: the files belong to another run
        raise fault.RunFault(
            f"{run_dir} was taken over by {other}, so this run stops after"
            f" step {step}; its work since {host.checkpoints.latest} is not saved"
        )
    problem = fault.not_finite(state)
    if problem is not None:
        _fault(host, f"{problem} after step {step}")
    # Records are synced first, so that no checkpoint is ahead of them.
    host.writers.sync()
    info = {
        "phase": index,
        "phase_name": phase.name,
        "phase_step": done,
        "step": step,
        "seconds": host.clock(),
        "stream": phase.stream.get_state(),
    }
    host.checkpoints.save(step, state, info)


def _stop(host: Host, by: signal.Signals, step: int) -> NoReturn:
    host.checkpoints.wait()
    saved = host.checkpoints.latest
    where = "nothing was saved yet" if saved is None else f"saved in {saved}"
    host.report(
        "run/stopped", f"by {by.name} after step {step}; {where}; resume to continue"
    )
    raise Stopped(by)


def _next_prompts(phase: Phase, done: int) -> Prompts:
    try:
        return next(phase.stream)
    except StopIteration as end:
        raise ValueError(
            f"the stream of phase {phase.name!r} must last for num_steps ="
            f" {phase.num_steps}, but ended after {done}; make it repeat."
        ) from end
