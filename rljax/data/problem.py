"""Problems: questions with reference answers, read from JSON lines."""

import os
from typing import NamedTuple

from rljax import strict_json


class Problem(NamedTuple):
    """A question, its reference answer and, where there is one, a worked solution."""

    question: str
    answer: str
    demonstration: str | None = None


def read_jsonl(
    path: str | os.PathLike,
    question: str = "question",
    answer: str = "answer",
    *,
    demonstration: str | None = None,
    answer_after: str | None = None,
) -> list[Problem]:
    """The problems of a file with one JSON object per line; blank lines are skipped.

    Args:
      question, answer: names of the fields to read.
      demonstration: name of the field with a worked solution; None reads none.
      answer_after: the answer is what follows the last such marker in its field,
        without surrounding white space: "####" for GSM8K. None takes the field as is.

    Raises:
      ValueError: with file and line, if a line is not a JSON object (see
        `strict_json`), a field is missing, not a string, blank, or no text (half a
        surrogate pair), or the marker is not there; if no line is left.
    """
    problems = []
    with open(path, "rb") as lines:  # bytes, so that bad UTF-8 is found in its line
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{os.fspath(path)}:{number}"
            row = _json_object(line, where)
            text = _field(row, answer, where)
            if answer_after is not None:
                text = _after(text, answer_after, where)
            problem = Problem(_field(row, question, where), text)
            if demonstration is not None:
                worked = _field(row, demonstration, where)
                problem = problem._replace(demonstration=worked)
            problems.append(problem)
    if not problems:
        raise ValueError(
            f"{os.fspath(path)} must hold at least one JSON object, got an empty file;"
            " check the path or write the file again."
        )
    return problems


def _json_object(line: bytes, where: str) -> dict:
    try:
        row = strict_json.loads(line)
    except ValueError as error:  # broken JSON and broken UTF-8
        raise ValueError(
            f"{where} must be a JSON object, but {error}; repair the line."
        ) from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where} must be a JSON object, got {type(row).__name__}; write one"
            ' {"field": "text", ...} per line.'
        )
    return row


def _field(row: dict, name: str, where: str) -> str:
    if name not in row:
        raise ValueError(
            f"{where} must have a field {name!r}, it has {sorted(row)}; pass the"
            " names of the fields to read_jsonl."
        )
    text = row[name]
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{where}: field {name!r} must be a string with text in it, got {text!r}"
            f" ({type(text).__name__}); write it as a JSON string."
        )
    if why := strict_json.no_text(text):
        raise ValueError(
            f"{where}: field {name!r} must be text, but {why}; write the line again"
            " from its source."
        )
    return text


def _after(text: str, marker: str, where: str) -> str:
    _, found, answer = text.rpartition(marker)
    if not found or not answer.strip():
        raise ValueError(
            f"{where}: an answer must follow the marker {marker!r}, got a text ending"
            f" in {text[-60:]!r}; repair the line or pass another answer_after."
        )
    return answer.strip()
