"""What a run writes down: one JSON line per training step, evaluation and event.

A record is a flat dict. Its `kind` is "step", "evaluation" or "event"; `phase`, `step`
(training steps done, over all phases) and `seconds` (of training, over all resumes)
say when; an event has a name (`event`) and a `message`; every other entry is a metric,
its key a path. The same steps and evaluations go to TensorBoard.
"""

import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Record = dict[str, Any]

FILE = "metrics.jsonl"
_PLACE = frozenset({"kind", "phase", "step", "seconds"})
_NOT_METRICS = frozenset({"kind", "phase", "step", "seconds", "event", "message"})


class AppendFile:
    """Appends bytes to a file and leaves no torn piece when the disk is full.

    What cannot be written waits in memory and goes first at the next append, so an
    outage that ends costs nothing.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file = None
        self._end = 0
        self._waiting = b""

    def append(self, data: bytes) -> None:
        """Appends to the file and hands it to the operating system.

        Raises:
          OSError: if it cannot be written now; it is kept for the next append.
        """
        self._waiting += data
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
            self._end = os.fstat(self._file.fileno()).st_size
        os.ftruncate(self._file.fileno(), self._end)  # what a failed append left
        rest = memoryview(self._waiting)
        while rest:  # a full disk shows as a short write first
            rest = rest[self._file.write(rest) :]
        self._end += len(self._waiting)
        self._waiting = b""

    def sync(self) -> None:
        """Waits until the disk has what was appended."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Recorder:
    """Writes records to `metrics.jsonl` and `tensorboard/` of a run folder.

    Args:
      purge_step: TensorBoard hides what earlier processes wrote from this step on.
    """

    def __init__(self, run_dir: pathlib.Path, *, purge_step: int):
        self._lines = AppendFile(run_dir / FILE)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._events = AppendFile(run_dir / "tensorboard" / name)
        self._purge_step: int | None = purge_step
        self._failing = False

    def write(self, records: Iterable[Record]) -> str | None:
        """Appends records.

        Returns:
          What went wrong, once per outage, else None: records that cannot be written
          never stop a run, they wait in memory.
        """
        records = list(records)
        lines = b"".join(map(line, records))
        points = [tensorboard_event(r) for r in records if r["kind"] != "event"]
        # Made with the first of them: tensorboardX imports torch, where there is one,
        # which takes seconds, and meanwhile the device has its first work.
        if points and self._purge_step is not None:
            points.insert(0, tensorboard_header(self._purge_step))
            self._purge_step = None
        events = b"".join(points)
        problems = [
            _problem(lambda: self._lines.append(lines)),
            _problem(lambda: self._events.append(events)),
        ]
        failing = any(problems)
        news = next(filter(None, problems)) if failing and not self._failing else None
        self._failing = failing
        return news

    def sync(self) -> None:
        """Waits until the disk has the lines, if it can: a checkpoint follows."""
        _problem(self._lines.sync)

    def close(self) -> None:
        self._lines.close()
        self._events.close()


def line(record: Record) -> bytes:
    """The record as a line of JSON, where non-finite numbers become null."""
    plain = {key: _plain(value) for key, value in record.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def scalars(record: Record) -> Record:
    """The metrics of a record, without its kind and its place in the run."""
    return {k: v for k, v in record.items() if k not in _NOT_METRICS}


def read_metrics(path: str | os.PathLike) -> list[Record]:
    """The records of a `metrics.jsonl`; null is read as NaN. A torn last line, which
    only a killed process leaves, is dropped; a missing file has no records.

    Raises:
      ValueError: with file and line, if another line is no record.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    records, unread = _read_lines(path)
    if unread:
        number, error, _ = unread[0]
        raise ValueError(
            f"{path}:{number} must be a record, but {error}; delete the line, or let"
            " --resume drop it."
        )
    return records


def rewind(
    path: pathlib.Path, keep: Callable[[Record], bool]
) -> tuple[list[Record], list[str]]:
    """Drops the records that `keep` refuses, and lines that are none, from a file.

    Events are kept: they happened. The file is replaced in one piece, so that a kill
    leaves the old or the new one.

    Returns:
      The records that are left, and a message for each line that was no record, with
      its beginning; a torn last line, which a kill leaves, is dropped without a word.
    """
    if not path.exists():
        return [], []
    records, unread = _read_lines(path)
    records = [r for r in records if r["kind"] == "event" or keep(r)]
    data = b"".join(map(line, records))
    if data != path.read_bytes():
        replace_file(path, data)
    return records, [
        f"line {number} of {path.name} was no record ({error}) and is dropped: it"
        f" began with {text[:60]!r}"
        for number, error, text in unread
    ]


def _read_lines(path: pathlib.Path):
    """The records of a file, and number, error and text of lines that are none."""
    records, unread = [], []
    *lines, _torn = path.read_bytes().split(b"\n")
    for number, text in enumerate(lines, 1):
        try:
            record = json.loads(text)
            record = {k: math.nan if v is None else v for k, v in record.items()}
            missing = _PLACE - record.keys()
            if missing:
                raise ValueError(f"it has no {min(missing)!r}")
            records.append(record)
        except (ValueError, AttributeError) as error:
            unread.append((number, error, text))
    return records, unread


def replace_file(path: pathlib.Path, data: bytes) -> None:
    """Writes a file in one piece: a kill or a full disk leaves the old or the new one.

    Raises:
      OSError: if it cannot be written; the old one is there and no part of the new.
    """
    new = path.with_name(path.name + ".new")
    try:
        with open(new, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise


def series(records: Sequence[Record], name: str, kind: str = "step") -> np.ndarray:
    """f64[3, N]: step, seconds and value of a metric, where it was recorded."""
    rows = [
        (r["step"], r["seconds"], r[name])
        for r in records
        if r["kind"] == kind and name in r
    ]
    return np.array(rows, np.float64).reshape(-1, 3).T


def tensorboard_header(purge_step: int) -> bytes:
    """The first two records of an event file: its version, and a session's start."""
    from tensorboardX.proto import event_pb2

    now = time.time()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return _framed(event_pb2.Event(wall_time=now, file_version="brain.Event:2")) + (
        _framed(event_pb2.Event(wall_time=now, step=purge_step, session_log=start))
    )


def tensorboard_event(record: Record) -> bytes:
    """One TensorBoard record with all metrics of a step or evaluation."""
    from tensorboardX.proto import event_pb2, summary_pb2

    prefix = "evaluation/" if record["kind"] == "evaluation" else ""
    values = [
        summary_pb2.Summary.Value(tag=prefix + name, simple_value=value)
        for name, value in scalars(record).items()
    ]
    summary = summary_pb2.Summary(value=values)
    return _framed(
        event_pb2.Event(wall_time=time.time(), step=record["step"], summary=summary)
    )


class Pace:
    """Throughput and time left, from when dispatches are seen to finish.

    Args:
      clock: () -> seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self.mark = clock()
        self._origin: tuple[float, int] | None = None

    def restart(self) -> None:
        """Call when the device starts to work again, after an evaluation."""
        self.mark = self._clock()

    def dispatch(self, step: int, num_steps: int) -> np.ndarray:
        """f64[num_steps]: when each step of the dispatch that ends with `step` ended.

        The host sees only the last of them; the others are put at equal distances.
        """
        start, self.mark = self.mark, self._clock()
        if self._origin is None:  # the first dispatch compiles: it says nothing
            self._origin = (self.mark, step)
        return np.linspace(start, self.mark, num_steps + 1)[1:]

    def seconds_left(self, step: int, last: int) -> float | None:
        """At this phase's pace, evaluations included; None when nothing is known."""
        if self._origin is None or step <= self._origin[1]:
            return None
        seconds, first = self._origin
        return (last - step) * (self._clock() - seconds) / (step - first)


def tokens_per_second(
    metrics: Mapping[str, np.ndarray], seconds: float
) -> float | None:
    """Sampled tokens of a dispatch over its seconds, if its steps count them."""
    if "samples/tokens" not in metrics:
        return None
    return float(np.sum(metrics["samples/tokens"])) / max(seconds, 1e-9)


def _plain(value):
    if isinstance(value, np.generic):
        # The shortest digits that give this float32 back, not those of its double.
        value = float(str(value)) if isinstance(value, np.float32) else value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _framed(event) -> bytes:
    """The event in TensorFlow's record format: length, data and their checksums."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checks[0] + data + checks[1]


def _problem(write: Callable[[], None]) -> str | None:
    try:
        write()
    except OSError as error:
        return str(error)
    return None
