"""Writes the TensorBoard events of a run.

tensorboardX makes the messages but does not write them: its writer thread ends at the
first full disk, and then its queue blocks the run. An entry of the file is a length, a
message, and a checksum of each.
"""

import pathlib
import socket
import struct
import time
from collections.abc import Sequence

from rljax.run import record
from rljax.run.files import AppendFile
from rljax.run.record import Record


class TensorBoard:
    """Writes the metrics of steps and evaluations to `tensorboard/`.

    Args:
      run_dir: of the run.
      purge_step: TensorBoard hides events of earlier processes from this step on.
    """

    def __init__(self, run_dir: pathlib.Path, *, purge_step: int):
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = AppendFile(run_dir / "tensorboard" / name)
        self._purge_step: int | None = purge_step

    def write(self, records: Sequence[Record]) -> None:
        points = [_event(r) for r in records if r["kind"] in ("step", "evaluation")]
        # The header is made with the first point, not before: tensorboardX imports
        # torch if it is installed, which takes seconds. By now the device is working.
        if points and self._purge_step is not None:
            points.insert(0, _header(self._purge_step))
            self._purge_step = None
        self._file.append(b"".join(points))

    def sync(self) -> None:
        pass  # after a crash of the machine, curves may lack a few steps

    def close(self) -> None:
        self._file.close()


def _header(purge_step: int) -> bytes:
    """The first two messages of a file: its version, and the start of a session."""
    from tensorboardX.proto import event_pb2

    now = time.time()
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    return _framed(event_pb2.Event(wall_time=now, file_version="brain.Event:2")) + (
        _framed(event_pb2.Event(wall_time=now, step=purge_step, session_log=start))
    )


def _event(step: Record) -> bytes:
    """The message with all metrics of a step or evaluation."""
    from tensorboardX.proto import event_pb2, summary_pb2

    values = [
        summary_pb2.Summary.Value(tag=name, simple_value=value)
        for name, value in record.curves(step).items()
    ]
    summary = summary_pb2.Summary(value=values)
    return _framed(
        event_pb2.Event(wall_time=time.time(), step=step["step"], summary=summary)
    )


def _framed(event) -> bytes:
    """The message in TensorFlow's record format."""
    from tensorboardX.record_writer import masked_crc32c

    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
    return length + checks[0] + data + checks[1]
