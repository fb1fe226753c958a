"""What a run writes down, on good disks and full ones."""

import math
import os
import struct

import numpy as np
import pytest
from full_disk import FullDisk
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from rljax.run import record as metrics


def step(number, **values):
    where = {"phase": "rl", "step": number, "seconds": 0.5 * number}
    return {"kind": "step", **where, **values}


def evaluation(number, **values):
    return {**step(number, **values), "kind": "evaluation"}


def event(number, message="text"):
    return {**step(number), "kind": "event", "event": "some/thing", "message": message}


def test_lines_are_strict_json_that_gives_the_same_float32_back(tmp_path):
    # Writing the float32 as a double would give 0.10000000149011612; Python's own
    # NaN and Infinity are not JSON.
    value = np.float32(0.1)
    text = metrics.line(step(1, a=value, b=np.float32(np.inf), c=float("nan"), d=3))
    assert b'"a": 0.1,' in text
    assert b'"b": null, "c": null, "d": 3}' in text
    path = tmp_path / metrics.FILE
    path.write_bytes(text)
    (record,) = metrics.read_metrics(path)
    assert np.float32(record["a"]) == value
    assert math.isnan(record["b"])


def test_reading_drops_a_torn_last_line_and_knows_an_absent_file(tmp_path):
    path = tmp_path / metrics.FILE
    assert metrics.read_metrics(path) == []
    whole = metrics.line(step(1, a=1.0))
    path.write_bytes(whole + metrics.line(step(2, a=2.0))[:-1])
    # The torn line happens to be whole but for its end, which nobody can know.
    assert metrics.read_metrics(path) == [step(1, a=1.0)]


@pytest.mark.parametrize("bad", [b"{half\n", b"[1]\n", b"\xff\n", b'{"step": 1}\n'])
def test_a_broken_line_in_between_is_named_and_rewind_drops_it(tmp_path, bad):
    # Two processes in one folder left such lines, and then no resume ever succeeded.
    path = tmp_path / metrics.FILE
    path.write_bytes(metrics.line(step(1)) + bad + metrics.line(step(2)))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 must be a record, but"):
        metrics.read_metrics(path)
    left, (problem,) = metrics.rewind(path, lambda r: True)
    assert left == [step(1), step(2)] == metrics.read_metrics(path)
    assert "line 2 of metrics.jsonl was no record" in problem
    assert repr(bad[:-1]) in problem
    assert metrics.rewind(path, lambda r: True) == (left, [])


def test_rewind_keeps_events_and_what_the_predicate_keeps(tmp_path):
    path = tmp_path / metrics.FILE
    records = [step(1), evaluation(1, a=math.inf), event(1), step(2), event(2)]
    path.write_bytes(b"".join(map(metrics.line, records)) + b'{"torn')
    left, problems = metrics.rewind(path, lambda r: r["step"] <= 1)
    assert problems == []
    assert [(r["kind"], r["step"]) for r in left] == [
        ("step", 1),
        ("evaluation", 1),
        ("event", 1),
        ("event", 2),
    ]
    assert path.read_bytes() == b"".join(map(metrics.line, left))
    assert [p.name for p in tmp_path.iterdir()] == [metrics.FILE]


def test_a_short_write_is_undone_and_made_up_for(tmp_path, monkeypatch):
    # Room for 7 of 10 bytes. Without the undo the file would read aaaabbbaaaabbbbbb
    # or lose the second record.
    disk = FullDisk(7)
    monkeypatch.setattr(metrics, "open", disk.open, raising=False)
    file = metrics.AppendFile(tmp_path / "file")
    file.append(b"aaaa")
    with pytest.raises(OSError, match="No space"):
        file.append(b"bbbbbb")
    with pytest.raises(OSError, match="No space"):
        file.append(b"")
    disk.room = 100
    file.append(b"c")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"aaaabbbbbbc"


def test_a_full_disk_is_reported_once_and_loses_nothing(tmp_path, monkeypatch):
    disk = FullDisk(30)
    monkeypatch.setattr(metrics, "open", disk.open, raising=False)
    recorder = metrics.Recorder(tmp_path, purge_step=0)
    problems = [recorder.write([step(i, a=1.0)]) for i in (1, 2)]
    assert "No space left" in problems[0]
    assert problems[1] is None
    disk.room = 10_000
    assert recorder.write([step(3, a=1.0)]) is None
    recorder.close()
    records = metrics.read_metrics(tmp_path / metrics.FILE)
    assert [r["step"] for r in records] == [1, 2, 3]
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert [e.step for e in _events(file) if e.HasField("summary")] == [1, 2, 3]
    # A second outage is news again.
    recorder = metrics.Recorder(tmp_path, purge_step=0)
    disk.room = 0
    assert recorder.write([step(4)]) is not None
    recorder.close()


def test_a_folder_that_cannot_be_written_is_a_problem_not_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    recorder = metrics.Recorder(tmp_path / "file", purge_step=0)
    assert recorder.write([step(1)]) is not None
    recorder.sync()
    recorder.close()


def test_tensorboard_gets_steps_and_evaluations_and_purges_from_a_step(tmp_path):
    recorder = metrics.Recorder(tmp_path, purge_step=5)
    records = [step(5, **{"a/b": np.float32(2)}), evaluation(5, c=0.5), event(5)]
    assert recorder.write(records) is None
    recorder.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert "tfevents" in file.name
    version, start, first, second = _events(file)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, event_pb2.SessionLog.START)
    assert [(v.tag, v.simple_value) for v in first.summary.value] == [("a/b", 2.0)]
    (value,) = second.summary.value
    assert (second.step, value.tag, value.simple_value) == (5, "evaluation/c", 0.5)


def test_series_selects_the_records_that_have_the_metric():
    records = [step(1, a=3.0), step(2), evaluation(2, a=9.0), step(3, a=4.0)]
    np.testing.assert_array_equal(
        metrics.series(records, "a"), [[1, 3], [0.5, 1.5], [3, 4]]
    )
    assert metrics.series(records, "b").shape == (3, 0)


def test_pace_by_hand():
    # Two steps per dispatch: compiled until second 10, then 4 seconds each. After
    # step 4 a pause of 6. The first dispatch must not count in what is left, the
    # pause must: 20 steps left at (18 - 10 + 6) / 4 steps = 70, not 100 or 40.
    now = [0.0]
    pace = metrics.Pace(lambda: now[0])
    assert pace.seconds_left(0, 26) is None
    now[0] = 10.0
    np.testing.assert_allclose(pace.dispatch(2, 2), [5, 10])
    assert pace.seconds_left(2, 26) is None
    now[0] = 14.0
    np.testing.assert_allclose(pace.dispatch(4, 2), [12, 14])
    now[0] = 20.0
    pace.restart()
    now[0] = 24.0
    np.testing.assert_allclose(pace.dispatch(6, 2), [22, 24])
    assert pace.seconds_left(6, 26) == pytest.approx(70.0)


def test_tokens_per_second_are_those_of_the_whole_dispatch():
    counted = {"samples/tokens": np.array([10.0, 30.0])}
    assert metrics.tokens_per_second(counted, 4.0) == pytest.approx(10.0)
    assert metrics.tokens_per_second({}, 4.0) is None


def test_replacing_a_file_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    metrics.replace_file(path, b"old")
    metrics.replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]
    monkeypatch.setattr(metrics, "open", FullDisk(3).open, raising=False)
    with pytest.raises(OSError, match="No space"):
        metrics.replace_file(path, b"newer")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


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
