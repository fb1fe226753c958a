"""What a run writes down, on good disks and full ones."""

import struct

import numpy as np
import pytest
import toy_run
from fake_records import evaluation, event, step
from full_disk import FullDisk
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from rljax.run import files, record
from rljax.run.tensorboard import TensorBoard
from rljax.run.writer import JsonLines, Writers


def own_writers(run_dir, purge_step=0):
    return Writers([JsonLines(run_dir), TensorBoard(run_dir, purge_step=purge_step)])


def test_a_full_disk_is_reported_once_and_loses_nothing(tmp_path, monkeypatch):
    disk = FullDisk(30)
    monkeypatch.setattr(files, "open", disk.open, raising=False)
    writers = own_writers(tmp_path)
    problems = [writers.write([step(i, a=1.0)]) for i in (1, 2)]
    assert "No space left" in problems[0]
    assert problems[1] is None
    disk.room = 10_000
    assert writers.write([step(3, a=1.0)]) is None
    writers.close()
    records = record.read(tmp_path / record.FILE)
    assert [r["step"] for r in records] == [1, 2, 3]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert [e.step for e in _events(file) if e.HasField("summary")] == [1, 2, 3]
    # A second outage is news again.
    writers = own_writers(tmp_path)
    disk.room = 0
    assert writers.write([step(4)]) is not None
    writers.close()


def test_a_folder_that_cannot_be_written_is_a_problem_not_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    writers = own_writers(tmp_path / "file")
    assert writers.write([step(1)]) is not None
    writers.sync()
    writers.close()


def test_tensorboard_gets_steps_and_evaluations_and_purges_from_a_step(tmp_path):
    writers = own_writers(tmp_path, purge_step=5)
    records = [step(5, **{"a/b": np.float32(2)}), evaluation(5, c=0.5), event(5)]
    assert writers.write(records) is None
    writers.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    version, start, first, second = _events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    assert [(v.tag, v.simple_value) for v in first.summary.value] == [("a/b", 2.0)]
    (value,) = second.summary.value
    assert (second.step, value.tag, value.simple_value) == (5, "evaluation/c", 0.5)


class Kept:
    """A writer of one's own, whose network fails at the first write."""

    def __init__(self):
        self.records, self.calls = [], []

    def write(self, records):
        self.calls.append("write")
        if len(self.calls) == 1:
            raise OSError("no network")
        self.records += records

    def sync(self):
        self.calls.append("sync")

    def close(self):
        self.calls.append("close")


def test_a_writer_of_ones_own_gets_all_records_and_its_failure_is_an_event(tmp_path):
    kept = Kept()
    toy_run.go_silently(tmp_path / "run", writers=[kept])
    written = record.read(tmp_path / "run" / record.FILE)
    # All but the first, `run/started`, whose write failed.
    assert [(r["kind"], r["step"]) for r in kept.records] == [
        (r["kind"], r["step"]) for r in written[1:]
    ]
    events = [r for r in written if r["kind"] == "event"]
    assert [r["event"] for r in events] == ["run/started", "metrics/failed"]
    assert "no network" in events[1]["message"]
    assert "sync" in kept.calls and kept.calls[-1] == "close"


def test_an_error_of_a_writers_code_is_no_outage():
    class Broken:
        def write(self, records):
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        Writers([Broken()]).write([step(1)])


def _events(path):
    """The records of an event file, with their checksums checked."""
    data, events = path.read_bytes(), []
    while data:
        length, check = struct.unpack("<QI", data[:12])
        assert check == masked_crc32c(data[:8])
        body = data[12 : 12 + length]
        (check,) = struct.unpack("<I", data[12 + length : 16 + length])
        assert check == masked_crc32c(body)
        events.append(event_pb2.Event.FromString(body))
        data = data[16 + length :]
    return events
