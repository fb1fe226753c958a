"""Reads JSON that others wrote, strictly: ambiguous or invalid content raises.

Python's `json` takes the last of two equal keys and accepts NaN. It also accepts half a
surrogate pair, which no tokenizer and no file accepts afterwards.
"""

import json
import pathlib
import re
from typing import Any

_NO_TEXT = re.compile("[\0\ud800-\udfff]")


def read_file(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      ValueError: with the file, if it is missing or does not hold one JSON object.
    """
    if not file.parent.is_dir():
        raise ValueError(f"{str(file.parent)!r} must be a local folder, got none.")
    if not file.is_file():
        raise ValueError(
            f"{str(file.parent)!r} must hold {file.name}, found"
            f" {sorted(entry.name for entry in file.parent.iterdir())}."
        )
    try:
        out = loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON: {error}.") from error
    if not isinstance(out, dict):
        raise ValueError(
            f"{file}: must hold an object, got a {type(out).__name__}; restore the file"
            " as it was published."
        )
    return out


class Written(str):
    """A JSON number in its written form: 0.10 is not 0.1, and no digit is lost."""


def loads(text: bytes, *, written: bool = False) -> Any:
    """Parses UTF-8 bytes; a byte-order mark in front is skipped.

    Args:
      text: one JSON value.
      written: return numbers as `Written`, not as int and float.

    Raises:
      ValueError: with the reason only, if the bytes are not UTF-8 or not JSON, if an
        object has a key twice, or for NaN, infinities, numbers of thousands of digits
        and brackets nested thousands deep.
    """
    try:
        return json.loads(
            text.decode("utf-8-sig").strip(" \t\n\r\v\f"),  # only ASCII whitespace
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_int=Written if written else None,
            parse_float=Written if written else None,
        )
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def no_text(text: str) -> str | None:
    """Why a string is not valid text, or None: half a surrogate pair or a zero byte."""
    found = _NO_TEXT.search(text)
    if found is None:
        return None
    kind = "a zero byte" if found[0] == "\0" else "half of a surrogate pair"
    return f"character {found.start()} is {kind}, {found[0]!a}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!a} occurs twice")
    return out


def _no_number(name: str):
    raise ValueError(f"{name} is no number of JSON")
