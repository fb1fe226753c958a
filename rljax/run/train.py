"""The host loop: feeds dispatches to the device, and sees to everything around them.

While the device works on a dispatch, the host reads the metrics of the one before and
writes them down. Where an evaluation or a checkpoint is due, which may be after every
dispatch, the host waits for the device. A run is a list of phases in a folder:

    config.json  metrics.jsonl  tensorboard/  checkpoints/

It can be killed at any moment and goes on from its newest checkpoint, bit for bit.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import pathlib
import signal
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from etils import epath
from rich.console import Console

from rljax import check, metric
from rljax.run import (
    checkpoint,
    display,
    fault,
    ownership,
    stop,
)
from rljax.run import (
    record as metrics,
)
from rljax.run import (
    run_dir as folder,
)
from rljax.run.phase import Metrics, Phase, check_phases, phase_of, templates_of
from rljax.types import Prompts, TrainState


class Stopped(SystemExit):
    """The run was asked to stop and has saved; `code` is 128 + the signal's number."""

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
    console: Console | None = None,
) -> TrainState:
    """Runs the phases one after the other, from the newest checkpoint if there is one.

    Args:
      state: what the first phase begins with; consumed. On a resumed run only its
        structure and shardings are read, and its memory is free for the restored one
        if the caller keeps no reference.
      run_dir: from `folder.open_run`.
      checkpoint_every: training steps between checkpoints; at the first dispatch
        boundary from there on. The last step of each phase is always saved.
      keep: newest checkpoints to keep.
      max_refused: optimiser steps in a row that may be refused.
      checkpoint_dir: the folder of this run's checkpoints alone, which may be in a
        bucket (gs://...); None is `checkpoints` in the run folder.
      console: where to show progress.

    Returns:
      The state after the last phase.

    Raises:
      ValueError: for phases that cannot run, checkpoints that do not fit them, and a
        folder that another process trains in.
      RunFault: if a `metric.Fault` is not 0, `max_refused` updates
        in a row were refused, the verifier failed for all samples of
        `fault.MAX_FAILED` steps in a row, or parameters or optimiser hold NaN when
        they are to be saved; the last good checkpoint is kept.
      Stopped: after SIGTERM or Ctrl-C, when the state is saved.
    """
    run_dir = pathlib.Path(run_dir)
    check_phases(phases)
    check.number("checkpoint_every", checkpoint_every, low=1)
    check.number("keep", keep, low=1)
    check.number("max_refused", max_refused, low=1)
    directory = epath.Path(checkpoint_dir or run_dir / "checkpoints")
    with ownership.kept(run_dir):
        newest = checkpoint.newest(directory)
        templates, state = templates_of(phases, state, newest)  # frees its memory
        found, restored, problems = checkpoint.restore_newest(
            directory, lambda found: templates[phase_of(phases, found)]
        )
        index, done = 0, 0
        if found is None:
            fault.require_finite(state)
        else:
            state = restored
            index, done = found.info["phase"], found.info["phase_step"]
            phases[index].stream.set_state(found.info["stream"])
        saver = functools.partial(checkpoint.Checkpoints, directory, keep=keep)
        with _open_host(phases, run_dir, found, saver, max_refused, console) as host:
            for problem in problems:
                host.report("checkpoint/corrupt", problem)
            for i in range(index, len(phases)):
                state = _run_phase(host, i, state, done, checkpoint_every)
                done = 0
            host.checkpoints.wait()
            if host.asked.by is not None:
                _stop(host, host.asked.by, host.board.step)
    return state


def _run_phase(host: "_Host", index: int, state, done: int, checkpoint_every: int):
    """Runs what is left of a phase after `done` of its steps."""
    phase, offset = host.phases[index], host.offset(index)
    host.board.phase, host.board.step = phase.name, offset + done
    if done == 0:
        state = phase.begin(state)
        before = host.phases[index - 1].evaluate if index else None
        if before is None:
            _evaluate(host, phase, state, offset)
    if host.asked.by is not None:
        _stop(host, host.asked.by, offset + done)
    pace = metrics.Pace(host.clock)
    flying = None
    while done < phase.num_steps:
        prompts = _next_prompts(phase, done)
        state, raw = phase.run(state, prompts)
        if flying is not None:
            _record(host, pace, flying)
        flying = _Flying(phase, offset + done, raw)
        start, done = done, done + phase.steps_per_dispatch
        end = done == phase.num_steps
        save = end or _crossed(start, done, checkpoint_every)
        evaluate = phase.evaluate is not None and (
            end or _crossed(start, done, phase.evaluate_every)
        )
        if save or evaluate or host.asked.by is not None:
            _record(host, pace, flying)
            flying = None
            if evaluate:
                _evaluate(host, phase, state, offset + done)
            asked = host.asked.by
            if save or asked is not None:
                _save(host, index, done, state)
            if asked is not None:
                _stop(host, asked, offset + done)
            pace.restart()
        host.checkpoints.poll()
    return state


def _crossed(start: int, done: int, every: int) -> bool:
    """Whether a multiple of `every` lies after `start` and not after `done`."""
    return done // every > start // every


class _Flying(NamedTuple):
    """A dispatch whose metrics were not read yet: its phase and the steps before it."""

    phase: Phase
    before: int
    metrics: Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Host:
    """What the loop uses: where it writes to, shows on and hears from."""

    phases: Sequence[Phase]
    run_dir: pathlib.Path
    clock: Callable[[], float]
    recorder: metrics.Recorder
    checkpoints: checkpoint.Checkpoints
    screen: display.Display
    asked: stop.Asked
    refusals: fault.Refusals

    @property
    def board(self) -> display.Board:
        return self.screen.board

    def offset(self, index: int) -> int:
        """Training steps of the phases before this one."""
        return sum(phase.num_steps for phase in self.phases[:index])

    def write(self, records: Sequence[metrics.Record]) -> None:
        problem = self.recorder.write(records)
        if problem is not None:
            self.report("metrics/failed", f"{problem}; kept in memory for later")

    def report(self, name: str, message: str, **facts) -> None:
        """Records an event and shows it."""
        board = self.board
        if not name.startswith("run/"):
            board.events = board.events + collections.Counter([name])
        seconds = round(self.clock(), 3)
        when = {"phase": board.phase, "step": board.step, "seconds": seconds}
        event = {"kind": "event", **when, "event": name, "message": message, **facts}
        self.screen.say(f"{name}: {message}", style="yellow")
        self.write([event])


@contextlib.contextmanager
def _open_host(phases, run_dir, found, saver, max_refused, console):
    """Opens all that the loop uses and closes it again, whatever happens."""
    step, seconds = -1, 0.0
    if found is not None:
        step, seconds = found.info["step"], found.info["seconds"]
    reached = [] if found is None else phases[: found.info["phase"] + 1]
    names = {phase.name for phase in reached}
    records, unread = metrics.rewind(
        run_dir / metrics.FILE, lambda r: r["step"] <= step and r["phase"] in names
    )
    board = display.Board(run_dir.name, last=sum(p.num_steps for p in phases))
    board.step, board.seconds = max(step, 0), seconds
    board.phase = reached[-1].name if reached else phases[0].name
    for record in records:
        if record["kind"] == "evaluation":
            board.evaluation = metrics.scalars(record)
    with contextlib.ExitStack() as stack:
        screen = display.Display(board, console)
        stack.callback(screen.close)
        recorder = metrics.Recorder(run_dir, purge_step=step + 1)
        stack.callback(recorder.close)
        checkpoints = saver(
            report=lambda name, message: host.report(name, message),
            latest=None if found is None else found.path,
        )
        stack.callback(checkpoints.close)
        start = time.perf_counter() - seconds
        host = _Host(
            phases=phases,
            run_dir=run_dir,
            clock=lambda: time.perf_counter() - start,
            recorder=recorder,
            checkpoints=checkpoints,
            screen=screen,
            asked=stack.enter_context(
                stop.asked_to_stop(lambda by: _announce_stop(screen, by))
            ),
            refusals=fault.Refusals(max_refused, board.step),
        )
        where = "from the start" if found is None else f"from {found.path}"
        host.report("run/started", where, **folder.provenance())
        for problem in unread:
            host.report("metrics/dropped", problem)
        yield host


def _announce_stop(screen: display.Display, by: signal.Signals) -> None:
    screen.board.doing = (
        f"{by.name}: finishing this dispatch, then saving; Ctrl-C leaves at once"
    )
    screen.say(screen.board.doing, style="bold")
    screen.show_cursor()


def _record(host: _Host, pace: metrics.Pace, flying: _Flying) -> None:
    """Waits for a dispatch, writes its steps down and looks for faults."""
    phase, before = flying.phase, flying.before
    found = jax.device_get(flying.metrics)
    read = {name: np.asarray(v) for name, v in metric.numbers(found).items()}
    count = phase.steps_per_dispatch
    for name, value in read.items():
        if value.shape != (count,):
            raise ValueError(
                f"metrics must be f32[{count}], a number for each of the steps of a"
                f" dispatch, got {name} of shape {value.shape} in phase"
                f" {phase.name!r}; let the stream give steps_per_dispatch steps."
            )
    last = before + count
    start, ends = pace.mark, pace.dispatch(last, count)
    speed = metrics.tokens_per_second(read, ends[-1] - start)
    if speed is not None:
        read["time/tokens_per_second"] = np.full(count, speed, np.float32)
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
    board.step, board.seconds, board.tokens_per_second = last, ends[-1], speed
    board.left = pace.seconds_left(last, board.last)
    board.metrics = {name: float(value[-1]) for name, value in read.items()}
    host.write(records)
    host.screen.update()
    problem = fault.find_fault(before, found) or host.refusals.check(before, read)
    if problem is not None:
        _fault(host, problem)


def _fault(host: _Host, problem: str) -> NoReturn:
    host.checkpoints.wait()
    problem += f"; last good checkpoint: {host.checkpoints.latest}"
    host.report("run/fault", problem)
    raise fault.RunFault(problem)


def _evaluate(host: _Host, phase: Phase, state: TrainState, step: int) -> None:
    if phase.evaluate is None:
        return
    host.board.doing = "evaluating"
    values = {name: float(value) for name, value in phase.evaluate(state).items()}
    host.board.doing, host.board.evaluation = "", values
    place = {"phase": phase.name, "step": step, "seconds": round(host.clock(), 3)}
    host.write([{"kind": "evaluation", **place, **values}])
    shown = ", ".join(f"{k} {text}" for k, text in display.estimates(values).items())
    host.screen.say(f"[{phase.name}] evaluation after step {step}: {shown}")


def _save(host: _Host, index: int, done: int, state: TrainState) -> None:
    phase, step = host.phases[index], host.offset(index) + done
    other = ownership.lost(host.run_dir)
    if other is not None:  # not a word into files that are another's
        raise fault.RunFault(
            f"{host.run_dir} was taken over by {other}, so this run stops after step"
            f" {step}; nothing of it is saved since {host.checkpoints.latest}"
        )
    problem = fault.not_finite(state)
    if problem is not None:
        _fault(host, f"{problem} after step {step}")
    # The metrics first, so that no checkpoint is ahead of them.
    host.recorder.sync()
    info = {
        "phase": index,
        "phase_name": phase.name,
        "phase_step": done,
        "step": step,
        "seconds": host.clock(),
        "stream": phase.stream.get_state(),
    }
    host.checkpoints.save(step, state, info)


def _stop(host: _Host, by: signal.Signals, step: int) -> NoReturn:
    host.checkpoints.wait()
    saved = host.checkpoints.latest
    where = "nothing was saved yet" if saved is None else f"saved in {saved}"
    host.report(
        "run/stopped",
        f"by {by.name} after step {step}; {where}; go on with --resume",
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
