"""The records of a run, and the lines that a kill or another process tore."""

import math

import numpy as np
import pytest
from fake_records import evaluation, event, step

from rljax.run import record


def test_lines_are_strict_json_that_gives_the_same_float32_back(tmp_path):
    # Writing the float32 as a double would give 0.10000000149011612; Python's own
    # NaN and Infinity are not JSON.
    value = np.float32(0.1)
    text = record.line(step(1, a=value, b=np.float32(np.inf), c=float("nan"), d=3))
    assert b'"a": 0.1,' in text
    assert b'"b": null, "c": null, "d": 3}' in text
    path = tmp_path / record.FILE
    path.write_bytes(text)
    (found,) = record.read(path)
    assert np.float32(found["a"]) == value
    assert math.isnan(found["b"])


def test_reading_drops_a_torn_last_line_and_knows_an_absent_file(tmp_path):
    path = tmp_path / record.FILE
    assert record.read(path) == []
    whole = record.line(step(1, a=1.0))
    path.write_bytes(whole + record.line(step(2, a=2.0))[:-1])
    # The torn line happens to be whole but for its end, which nobody can know.
    assert record.read(path) == [step(1, a=1.0)]


@pytest.mark.parametrize("bad", [b"{half\n", b"[1]\n", b"\xff\n", b'{"step": 1}\n'])
def test_a_broken_line_in_between_is_named_and_a_resume_drops_it(tmp_path, bad):
    # Two processes in one folder left such lines, and then no resume ever succeeded.
    path = tmp_path / record.FILE
    path.write_bytes(record.line(step(1)) + bad + record.line(step(2)))
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2 must be a record, but"):
        record.read(path)
    left, (problem,) = record.drop_after(path, lambda r: True)
    assert left == [step(1), step(2)] == record.read(path)
    assert "line 2 of metrics.jsonl was not a record" in problem
    assert repr(bad[:-1]) in problem
    assert record.drop_after(path, lambda r: True) == (left, [])


def test_a_resume_keeps_events_and_what_the_predicate_keeps(tmp_path):
    path = tmp_path / record.FILE
    records = [step(1), evaluation(1, a=math.inf), event(1), step(2), event(2)]
    path.write_bytes(b"".join(map(record.line, records)) + b'{"torn')
    left, problems = record.drop_after(path, lambda r: r["step"] <= 1)
    assert problems == []
    assert [(r["kind"], r["step"]) for r in left] == [
        ("step", 1),
        ("evaluation", 1),
        ("event", 1),
        ("event", 2),
    ]
    assert path.read_bytes() == b"".join(map(record.line, left))
    assert [p.name for p in tmp_path.iterdir()] == [record.FILE]


def test_series_selects_the_records_that_have_the_metric():
    records = [step(1, a=3.0), step(2), evaluation(2, a=9.0), step(3, a=4.0)]
    np.testing.assert_array_equal(
        record.series(records, "a"), [[1, 3], [0.5, 1.5], [3, 4]]
    )
    assert record.series(records, "b").shape == (3, 0)
