"""The host side of a run: writers, checkpoints, display, clock and signals."""

import collections
import contextlib
import dataclasses
import pathlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from etils import epath
from rich.console import Console

from rljax import check, processes
from rljax.run import checkpoint, display, fault, record, stop
from rljax.run.phase import Phase, check_phases
from rljax.run.record import Record
from rljax.run.run_dir import provenance
from rljax.run.tensorboard import TensorBoard
from rljax.run.writer import JsonLines, Writer, Writers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `train.train`; see there."""

    phases: Sequence[Phase]
    run_dir: pathlib.Path
    checkpoint_dir: epath.Path
    checkpoint_every: int
    keep: int
    max_refused: int
    writers: Sequence[Writer]
    console: Console | None

    def __post_init__(self):
        check_phases(self.phases)
        for name in ("checkpoint_every", "keep", "max_refused"):
            check.count(name, getattr(self, name))

    def offset(self, index: int) -> int:
        """Training steps of the phases before this one."""
        return sum(phase.num_steps for phase in self.phases[:index])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """The resources that are open during a run.

    clock: () -> seconds of training, including those before a resume.
    stop_request: whether this process was asked to stop.
    """

    options: Options
    clock: Callable[[], float]
    writers: Writers
    checkpoints: checkpoint.Checkpoints
    screen: display.Display
    stop_request: stop.StopRequest
    refusals: fault.Refusals

    @property
    def board(self) -> display.Board:
        return self.screen.board

    def write(self, records: Sequence[Record]) -> None:
        """Writes records; reports an outage as an event."""
        problem = self.writers.write(records)
        if problem is not None:
            self.report("metrics/failed", f"{problem}; the run continues")

    def stop_by(self) -> signal.Signals | None:
        """The signal that asked any of the processes to stop, or None.

        All processes get the same answer, and all must call.
        """
        by = self.stop_request.by
        asked = processes.gathered("a request to stop", by)
        return next((signal.Signals(one) for one in asked if one is not None), None)

    def report(self, name: str, message: str, **facts) -> None:
        """Records an event and shows it."""
        board = self.board
        if not name.startswith("run/"):
            board.events = board.events + collections.Counter([name])
        event = {"kind": "event", **self.place(), "event": name, "message": message}
        self.screen.say(f"{name}: {message}", style="yellow")
        self.write([event | facts])

    def place(self) -> Record:
        """The position of the run: phase, step and seconds, which every record has."""
        seconds = round(self.clock(), 3)
        return {"phase": self.board.phase, "step": self.board.step, "seconds": seconds}


@contextlib.contextmanager
def open_host(options: Options, found: checkpoint.Found | None) -> Iterator[Host]:
    """Opens the resources of a run, and closes them at the end, also after an error.

    Args:
      options: of the run.
      found: the checkpoint to resume from, or None. Records after it are dropped.
    """
    if not processes.leads():  # only the leader writes records and shows progress
        options = dataclasses.replace(
            options, writers=(), console=Console(quiet=True, force_terminal=False)
        )
    board, broken_lines = _rewound(options, found)
    step, seconds = -1, 0.0
    if found is not None:
        step, seconds = found.info["step"], found.info["seconds"]
    with contextlib.ExitStack() as stack:
        screen = display.Display(board, options.console)
        stack.callback(screen.close)
        own = (
            (
                JsonLines(options.run_dir),
                TensorBoard(options.run_dir, purge_step=step + 1),
            )
            if processes.leads()
            else ()
        )
        writers = Writers([*own, *options.writers])
        stack.callback(writers.close)
        checkpoints = checkpoint.Checkpoints(
            options.checkpoint_dir,
            keep=options.keep,
            report=lambda name, message: host.report(name, message),
            latest=None if found is None else found.path,
        )
        stack.callback(checkpoints.close)
        start = time.perf_counter() - seconds
        stop_request = stack.enter_context(
            stop.noting_requests(lambda by: _announce_stop(screen, by))
        )
        host = Host(
            options=options,
            clock=lambda: time.perf_counter() - start,
            writers=writers,
            checkpoints=checkpoints,
            screen=screen,
            stop_request=stop_request,
            refusals=fault.Refusals(options.max_refused, board.step),
        )
        where = "from the start" if found is None else f"from {found.path}"
        host.report("run/started", where, **provenance())
        for problem in broken_lines:
            host.report("metrics/dropped", problem)
        yield host


def _rewound(
    options: Options, found: checkpoint.Found | None
) -> tuple[display.Board, list[str]]:
    """Removes the records after a checkpoint.

    A record after the checkpoint may have the checkpoint's step: the evaluation at the
    start of the next phase. So the phase is compared as well.

    Returns:
      The board at the checkpoint, and a message for each line that was not a record.
    """
    phases, step, reached = options.phases, -1, []
    if found is not None:
        step, reached = found.info["step"], phases[: found.info["phase"] + 1]
    names = {phase.name for phase in reached}

    def keep(entry):
        return entry["step"] <= step and entry["phase"] in names

    records, broken_lines = [], []
    if processes.leads():
        records, broken_lines = record.drop_after(options.run_dir / record.FILE, keep)
        texts = options.run_dir / record.COMPLETIONS
        broken_lines += record.drop_after(texts, keep)[1]
    board = display.Board(
        options.run_dir.name,
        last=options.offset(len(phases)),
        step=max(step, 0),
        phase=reached[-1].name if reached else phases[0].name,
        seconds=0.0 if found is None else found.info["seconds"],
    )
    for entry in records:
        if entry["kind"] == "evaluation":
            board.evaluation = record.scalars(entry)
    return board, broken_lines


def _announce_stop(screen: display.Display, by: signal.Signals) -> None:
    screen.board.doing = (
        f"{by.name}: finishing this dispatch, then saving; Ctrl-C leaves at once"
    )
    screen.say(screen.board.doing, style="bold")
    screen.show_cursor()
