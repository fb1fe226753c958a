"""The records of a run: one line of JSON per training step, evaluation and event.

A record is a flat dict. Its `kind` is "step", "evaluation", "event" or "completion".
`phase`, `step` (training steps done, over all phases) and `seconds` (of training, over
all resumes) say when. An event has a name (`event`) and a `message`, a completion its
texts and verdict; completions are in a file of their own. Every other entry is a
metric, and its key is a path.
"""

import json
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rljax.run import files

Record = dict[str, Any]

FILE, COMPLETIONS = "metrics.jsonl", "completions.jsonl"
_PLACE = frozenset({"kind", "phase", "step", "seconds"})
_NOT_METRICS = _PLACE | {"event", "message"}


def line(record: Record) -> bytes:
    """The record as a line of JSON, where non-finite numbers become null."""
    plain = {key: _plain(value) for key, value in record.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def scalars(record: Record) -> Record:
    """The metrics of a record, without its kind and its place in the run."""
    return {k: v for k, v in record.items() if k not in _NOT_METRICS}


def curves(record: Record) -> Record:
    """The metrics of a step or evaluation, by the names that trackers show.

    A metric may be both: those of evaluations begin with `evaluation/`.
    """
    prefix = "evaluation/" if record["kind"] == "evaluation" else ""
    return {prefix + name: value for name, value in scalars(record).items()}


def read(path: str | os.PathLike) -> list[Record]:
    """The records of a `metrics.jsonl`, with null as NaN.

    A torn last line, which a killed process leaves, is skipped. A missing file has no
    records.

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
            f"{path}:{number} must be a record, but {error}; delete the line, or resume"
            " the run, which drops it."
        )
    return records


def drop_after(
    path: pathlib.Path, keep: Callable[[Record], bool]
) -> tuple[list[Record], list[str]]:
    """Removes the steps and evaluations after a checkpoint, and broken lines.

    Events are kept because they happened. The file is replaced in one piece, so that a
    kill leaves the old or the new one.

    Args:
      keep: whether a record belongs to the steps up to the checkpoint.

    Returns:
      The records that are left, and a message for each line that was no record, with
      its beginning. A torn last line, which a kill leaves, is dropped silently.
    """
    if not path.exists():
        return [], []
    records, unread = _read_lines(path)
    records = [r for r in records if r["kind"] == "event" or keep(r)]
    data = b"".join(map(line, records))
    if data != path.read_bytes():
        files.replace_file(path, data)
    return records, [
        f"line {number} of {path.name} was no record ({error}) and is dropped: it"
        f" began with {text[:60]!r}"
        for number, error, text in unread
    ]


def series(records: Sequence[Record], name: str, kind: str = "step") -> np.ndarray:
    """f64[3, N]: step, seconds and value of a metric, where it was recorded."""
    rows = [
        (r["step"], r["seconds"], r[name])
        for r in records
        if r["kind"] == kind and name in r
    ]
    return np.array(rows, np.float64).reshape(-1, 3).T


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


def _plain(value):
    if isinstance(value, np.generic):
        # The shortest digits that give this float32 back, not those of its double.
        value = float(str(value)) if isinstance(value, np.float32) else value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
