"""Problems: questions with reference answers, read from JSON lines."""

import os
from typing import Any, NamedTuple

from rljax import strict_json


class Message(NamedTuple):
    """One message of a conversation; the role is usually system, user or assistant."""

    role: str
    content: str


class Tokens(NamedTuple):
    """A whole prompt as token ids, used unchanged."""

    ids: tuple[int, ...]


Question = str | tuple[Message, ...] | Tokens
"""A text, a conversation for a chat template, or a whole prompt as token ids."""


class Problem(NamedTuple):
    """A question, its reference answer and, optionally, a worked solution."""

    question: Question
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

    The question is a string; or a list of messages {"role": ..., "content": ...}, the
    last one by the user; or a list of token ids, the whole prompt. An answer may be a
    number: 27 and 27.0 become the text "27", all others stay as they are written.

    Args:
      question, answer: names of the fields to read.
      demonstration: name of the field with a worked solution; None reads none.
      answer_after: a marker; the answer is the text after its last occurrence in the
        field, without surrounding whitespace: "####" for GSM8K. None takes the whole
        field.

    Raises:
      ValueError: with file and line, if a line is not a JSON object (see
        `strict_json`), if a field is missing, of another type, blank or not valid text
        (half a surrogate pair), or if the marker is missing; or if there is no problem.
    """
    problems = []
    with open(path, "rb") as lines:  # bytes, so that bad UTF-8 is found in its line
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{os.fspath(path)}:{number}"
            row = _json_object(line, where)
            text = _answer(_field(row, answer, where), answer, where)
            if answer_after is not None:
                text = _after(text, answer_after, where)
            asked = _question(_field(row, question, where), question, where)
            problem = Problem(asked, text)
            if demonstration is not None:
                worked = _field(row, demonstration, where)
                worked = _text(worked, f"field {demonstration!r}", where)
                problem = problem._replace(demonstration=worked)
            problems.append(problem)
    if not problems:
        raise ValueError(
            f"{os.fspath(path)} must hold at least one JSON object, got an empty file;"
            " check the path or repair the file."
        )
    return problems


def _json_object(line: bytes, where: str) -> dict:
    try:
        row = strict_json.loads(line, written=True)
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


def _field(row: dict, name: str, where: str) -> Any:
    if name not in row:
        raise ValueError(
            f"{where} must have a field {name!r}, got {sorted(row)}; pass the"
            " names of the fields to read_jsonl."
        )
    return row[name]


def _answer(value: Any, name: str, where: str) -> str:
    if not isinstance(value, strict_json.Written):
        return _text(value, f"field {name!r}", where)
    whole, _, fraction = value.partition(".")
    return whole if fraction and not fraction.strip("0") else str(value)


def _question(value: Any, name: str, where: str) -> Question:
    if not isinstance(value, list):
        return _text(value, f"field {name!r}", where)
    if value and all(isinstance(x, strict_json.Written) for x in value):
        if not all(x.isdecimal() and len(x) < 10 for x in value):
            raise ValueError(
                f"{where}: field {name!r} must hold token ids, whole numbers from 0,"
                f" got {', '.join(value)[:80]}; write it as text, or encode it again."
            )
        return Tokens(tuple(int(x) for x in value))
    return _messages(value, name, where)


def _messages(value: list, name: str, where: str) -> tuple[Message, ...]:
    good = [isinstance(x, dict) and x.keys() == {"role", "content"} for x in value]
    if not value or not all(good):
        raise ValueError(
            f"{where}: field {name!r} must be a text, a list of messages"
            ' {"role": "user", "content": "text"} with these two keys alone, or one of'
            f" token ids, got {str(value)[:80]}; repair the line."
        )
    messages = tuple(
        Message(*(_text(x[k], f"{name}[{n}][{k!r}]", where) for k in Message._fields))
        for n, x in enumerate(value)
    )
    if messages[-1].role != "user":
        raise ValueError(
            f"{where}: the last message of {name!r} must be by the user, whom the"
            f" completion answers, got role {messages[-1].role!r}; remove what follows"
            " the question."
        )
    return messages


def _text(value: Any, what: str, where: str) -> str:
    number = isinstance(value, strict_json.Written)
    if not isinstance(value, str) or number or not value.strip():
        kind = "number" if number else type(value).__name__
        shown = value if number else repr(value)
        raise ValueError(
            f"{where}: {what} must be a string with text in it, got {shown} ({kind});"
            " write it as a JSON string."
        )
    if why := strict_json.no_text(value):
        raise ValueError(f"{where}: {what} must be text, but {why}; repair the line.")
    return value


def question_text(question: Question) -> str:
    """A question as one text; a conversation's without its system messages."""
    if isinstance(question, str):
        return question
    if isinstance(question, Tokens):
        return str(question)
    return "\n".join(m.content for m in question if m.role != "system")


def _after(text: str, marker: str, where: str) -> str:
    _, found, answer = text.rpartition(marker)
    if not found or not answer.strip():
        raise ValueError(
            f"{where}: an answer must follow the marker {marker!r}, got a text that"
            f" ends in {text[-60:]!r}; repair the line or pass another answer_after."
        )
    return answer.strip()
