"""Where the records of a run are written to, and what happens when one cannot be.

The run loop always writes `metrics.jsonl` and `tensorboard/`. Pass further writers to
`train.train`, such as that of `tracker.opener`, or a class of your own.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Protocol

from rljax.run import record
from rljax.run.files import AppendFile
from rljax.run.record import Record


class Writer(Protocol):
    """Takes the records of a run, in their order."""

    def write(self, records: Sequence[Record]) -> None:
        """Writes records.

        Raises:
          OSError: if they cannot be written now. It is reported as an event, once per
            outage, and the run goes on.
        """
        ...

    def sync(self) -> None:
        """Waits until what was written is safe: a checkpoint follows."""
        ...

    def close(self) -> None: ...


class JsonLines:
    """Writes `metrics.jsonl` and `completions.jsonl`; what a full disk refuses waits
    in memory."""

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
    """Several writers as one that never raises because of a disk or a network."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)
        self._failing = False

    def write(self, records: Sequence[Record]) -> str | None:
        """Gives records to every writer.

        Returns:
          What went wrong, once per outage, else None.
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
