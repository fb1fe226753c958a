"""Writers of a run's records, and how they fail.

The run loop always writes `metrics.jsonl` and `tensorboard/`. Pass further writers to
`experiment.run`, such as `tracker.Tracker(wandb.init(...))` or your own class.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

from rljax.run import record
from rljax.run.files import AppendFile
from rljax.run.record import Record


class Writer(Protocol):
    """Receives the records of a run, in order."""

    def write(self, records: Sequence[Record]) -> None:
        """Writes records.

        Raises:
          OSError: if they cannot be written now. The run loop reports an event, once
            per outage, and continues.
        """
        ...

    def sync(self) -> None:
        """Waits until the records are stored safely; called before each checkpoint."""
        ...

    def close(self) -> None:
        """Called once, at the end of the run."""
        ...


class JsonLines:
    """Writes `metrics.jsonl` and `completions.jsonl`.

    Records that a full disk refuses are kept in memory and written later.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._metrics = AppendFile(run_dir / record.FILE)
        self._completions = AppendFile(run_dir / record.COMPLETIONS)

    def write(self, records: Sequence[Record]) -> None:
        texts = [r for r in records if r["kind"] == "completion"]
        if texts:
            self._completions.append(b"".join(map(record.line, texts)))
        others = [r for r in records if r["kind"] != "completion"]
        self._metrics.append(b"".join(map(record.line, others)))

    def sync(self) -> None:
        self._metrics.sync()
        self._completions.sync()

    def close(self) -> None:
        self._metrics.close()
        self._completions.close()


class Writers:
    """Combines writers; an OSError of one of them is returned, never raised."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)
        self._failing = False

    def write(self, records: Sequence[Record]) -> str | None:
        """Passes records to every writer.

        Returns:
          The first error's message, once per outage, else None.
        """
        problems = [_problem(lambda w=w: w.write(records)) for w in self._writers]
        found = next(filter(None, problems), None)
        news = None if self._failing else found
        self._failing = found is not None
        return news

    def sync(self) -> None:
        for writer in self._writers:
            _problem(writer.sync)

    def close(self) -> None:
        for writer in self._writers:
            _problem(writer.close)


def _problem(write: Callable[[], None]) -> str | None:
    try:
        write()
    except OSError as error:
        return str(error)
    return None
