"""Checks values of config.json."""

import json
import math
import types
import typing
from typing import Any


def checked(kind: Any, key: str, value: Any, source) -> Any:
    """Returns `value`, or raises ValueError if it is not of the given kind.

    Args:
      kind: bool, int or float, or a union of one of these with None. Numbers must be
        above 0.
      key, source: for the message.
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(x for x in typing.get_args(kind) if x is not types.NoneType)
    if kind is bool:
        good, what = isinstance(value, bool), "true or false"
    else:
        allowed = int if kind is int else (int, float)
        good = isinstance(value, allowed) and not isinstance(value, bool)
        good = good and 0 < value < (2**31 if kind is int else math.inf)
        what = "a whole number above 0" if kind is int else "a number above 0"
    if not good:
        raise ValueError(f"{source}: {key} must be {what}, got {json.dumps(value)}.")
    return value


def only(what: str, found: dict[str, Any], default, source) -> Any:
    """The value on which all places agree; `default` if there is none.

    Args:
      what: name of the value, for the message.
      found: name of a place -> its value.
      default: without places.
      source: for the message.
    """
    values = [*found.values(), default]
    if any(value != values[0] for value in found.values()):
        shown = json.dumps(found, default=str)
        raise ValueError(f"{source}: need one {what}, got {shown}; make them equal.")
    return values[0]
