"""The records of a run: one line of JSON per training step, evaluation and event.

A record is a flat dict with these entries:

    kind       "step", "evaluation", "event" or "completion"
    phase      name of the phase
    step       training steps done, over all phases
    seconds    of training, over all resumes

An event also has a name (`event`) and a `message`; a completion has its texts and
verdict, and is in a file of its own. Every other entry is a metric, whose key is a path
such as "reward/mean".
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
    """The record as a line of JSON; non-finite numbers become null."""
    plain = {key: _plain(value) for key, value in record.items()}
    return json.dumps(plain, allow_nan=False).encode() + b"\n"


def scalars(record: Record) -> Record:
    """The metrics of a record, without kind, phase, step and seconds."""
    return {k: v for k, v in record.items() if k not in _NOT_METRICS}


def curves(record: Record) -> Record:
    """The metrics of a step or evaluation, under the names that trackers show.

    Those of evaluations get the prefix `evaluation/`, because a step may have a metric
    of the same name.
    """
    prefix = "evaluation/" if record["kind"] == "evaluation" else ""
    return {prefix + name: value for name, value in scalars(record).items()}


def read(path: str | os.PathLike) -> list[Record]:
    """Reads the records of a `metrics.jsonl`; null becomes NaN.

    An incomplete last line, which a killed process leaves, is skipped. A missing file
    has no records.

    Raises:
      ValueError: naming file and line, if another line is not a record.
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
    """Removes the records after a checkpoint, and broken lines, from a file.

    Events are kept, because they did happen. The file is replaced atomically.

    Args:
      path: of the file.
      keep: record -> whether it belongs to the steps up to the checkpoint.

    Returns:
      The records that are left, and a message for each broken line. An incomplete last
      line, which a killed process leaves, is dropped without a message.
    """
    if not path.exists():
        return [], []
    records, unread = _read_lines(path)
    records = [r for r in records if r["kind"] == "event" or keep(r)]
    data = b"".join(map(line, records))
    if data != path.read_bytes():
        files.replace_file(path, data)
    return records, [
        f"line {number} of {path.name} was not a record ({error}) and is dropped: it"
        f" began with {text[:60]!r}"
        for number, error, text in unread
    ]


def series(records: Sequence[Record], name: str, kind: str = "step") -> np.ndarray:
    """f64[3, N]: step, seconds and value of a metric in the N records that have it."""
    rows = [
        (r["step"], r["seconds"], r[name])
        for r in records
        if r["kind"] == kind and name in r
    ]
    return np.array(rows, np.float64).reshape(-1, 3).T


def _read_lines(path: pathlib.Path):
    """The records of a file, and (number, error, text) of each broken line."""
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
        # The shortest digits that identify the float32, not all those of its double.
        value = float(str(value)) if isinstance(value, np.float32) else value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
