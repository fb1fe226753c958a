"""Checks of arguments, for the first lines of factories.

A wrong argument then raises where the factory is called, not later when a program is
traced. Each check raises ValueError with what must hold, what came and what to do.
Numbers may be traced (a population is a `vmap` over them); of a traced number only the
dtype is checked.
"""

import collections.abc
import inspect
import itertools
import math
import numbers
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# JAX takes Python integers as int32.
_LARGEST_INT = 2**31 - 1


def number(name: str, value, *, above=-math.inf, below=math.inf, low=None, high=None):
    """Raises ValueError unless `above < value < below` and `low <= value <= high`.

    NaN never passes. An infinity passes only if it is itself an inclusive bound.
    Exclusive bounds also hold after rounding to float32: 1e-50 is not above 0.

    Args:
      name: the argument's name, for the message.
      value: a number, a concrete array (all entries are checked) or a tracer (none is).
      above, below: exclusive bounds.
      low, high: inclusive bounds; they replace the exclusive one on their side.
    """
    if not _is_number(value):
        refuse(name, "be a number", value)
    if isinstance(value, jax.core.Tracer):
        return
    # NumPy, because within a trace JAX would trace operations on constants as well.
    entries = np.asarray(value).ravel().tolist() if hasattr(value, "ravel") else [value]
    for x in entries:
        if isinstance(x, int) and abs(x) > _LARGEST_INT:
            raise ValueError(
                f"{name} must fit into 32 bits, got {_shown(x)}; write it as a float,"
                " such as 1e10, or pass a smaller one."
            )
        with np.errstate(over="ignore"):
            rounded = float(np.float32(x))
        above_ok = x >= low if low is not None else min(x, rounded) > above
        below_ok = x <= high if high is not None else max(x, rounded) < below
        if not (above_ok and below_ok):
            left = f"[{low}" if low is not None else f"({above}"
            right = f"{high}]" if high is not None else f"{below})"
            raise ValueError(
                f"{name} must lie in {left}, {right}, got {x}; pass a number in this"
                " range."
            )


def count(name: str, value, *, low: int = 1, high: int = _LARGEST_INT):
    """Raises ValueError unless `value` is an integer, not traced, in [low, high]."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        refuse(name, "be an integer", value)
    if not low <= int(value) <= high:
        raise ValueError(
            f"{name} must lie in [{low}, {high}], got {str(value)[:40]}; pass an"
            " integer in this range."
        )


def seed(name: str, value):
    """Raises ValueError unless `value` is an integer in [0, 2**32); may be traced."""
    if isinstance(value, jax.Array):
        if not (value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)):
            refuse(name, "be an integer", value)
    else:
        count(name, value, low=0, high=2**32 - 1)


def ordered(**values):
    """Raises ValueError unless these numbers never decrease; skips traced ones."""
    for name, value in values.items():
        number(name, value, low=-math.inf, high=math.inf)
    known = {k: v for k, v in values.items() if not isinstance(v, jax.core.Tracer)}
    if any(not np.all(a <= b) for a, b in itertools.pairwise(known.values())):
        got = ", ".join(f"{k}={v}" for k, v in known.items())
        raise ValueError(f"need {' <= '.join(known)}, got {got}; swap or change them.")


def kind(name: str, value, wanted: type | tuple[type, ...], example: str):
    """Raises ValueError unless `value` is an instance of the wanted type.

    Args:
      example: a call that makes such a value, for the message: "token_mean()".
    """
    if not isinstance(value, wanted):
        one = wanted[0] if isinstance(wanted, tuple) else wanted
        article = "an" if one.__name__[0] in "AEIOU" else "a"
        refuse(name, f"be {article} {one.__name__}, such as {example}", value)


def function(name: str, value, takes: str):
    """Raises ValueError unless `value` takes these arguments and is not a factory.

    A factory is recognised by its return annotation: a function or a pair of functions.

    Args:
      takes: the positional arguments, such as "now, credit, rollout".
    """
    maker(name, value, takes)
    found = getattr(value, "__annotations__", {})
    result = found.get("return") if isinstance(found, dict) else None
    if typing.get_origin(result) is collections.abc.Callable or _is_pair(result):
        refuse(name, f"be a function of ({takes})", value)


def maker(name: str, value, takes: str):
    """As `function`, but `value` may return transforms or algorithms."""
    if not callable(value) or isinstance(value, type):
        refuse(name, f"be a function of ({takes})", value)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # builtins have none
        return
    try:
        signature.bind(*takes.split(","))
    except TypeError:
        refuse(name, f"be a function of ({takes})", value)


def text(name: str, value):
    """Raises ValueError unless `value` is a str that UTF-8 can encode."""
    if not isinstance(value, str):
        refuse(name, "be a str", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name} must be text that UTF-8 can encode, got {value!a} with half of a"
            " surrogate pair or a byte that is no UTF-8; write it in UTF-8."
        ) from None


def raw_bytes(name: str, value):
    """Raises ValueError unless `value` is bytes; a str would never equal any bytes."""
    if not isinstance(value, bytes):
        refuse(name, "be bytes", value)


def stop_tokens(
    stops: collections.abc.Sequence[int], vocab_size: int, source: str = ""
):
    """Raises ValueError unless all end tokens are ids of the vocabulary.

    Args:
      source: the file or argument they come from, for the message.
    """
    for i in stops:
        whole = isinstance(i, numbers.Integral) and not isinstance(i, bool)
        if not whole or not 0 <= i < vocab_size:
            raise ValueError(
                f"{source or 'stop_tokens'}: an end token must be an id in"
                f" [0, {vocab_size}), the rows of the policy's embedding, got {i!r};"
                " remove it, as no completion could end with it."
            )


def refuse(name: str, must: str, value: Any) -> typing.NoReturn:
    """Raises ValueError: what must hold, what came, and what is probably meant."""
    raise ValueError(f"{name} must {must}, got {_shown(value)}; {_advice(must, value)}")


def described(value: Any) -> str:
    """Type and shape of anything that a user's function returned, for a message."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


def _is_number(value) -> bool:
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        dtype = value.dtype
        return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_pair(result) -> bool:
    """Whether a type is one of the library's tuples of functions with an `init`."""
    return isinstance(result, type) and "init" in getattr(result, "_fields", ())


def _shown(value) -> str:
    if isinstance(value, (jax.Array, np.ndarray)):
        return f"an array {value.dtype}{list(value.shape)}"
    if inspect.isroutine(value):
        return f"the function {value.__name__}({', '.join(_parameters(value))})"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "_fields") or callable(value):
        return f"an object of type {type(value).__name__}"
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{shown} ({type(value).__name__})"


def _parameters(fn) -> list[str]:
    try:
        return list(inspect.signature(fn).parameters)
    except (TypeError, ValueError):  # builtins have none
        return ["..."]


def _is_numeral(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _advice(must: str, value) -> str:
    if inspect.isroutine(value):
        other = " Or does it take other arguments?" if "function" in must else ""
        return f"did you forget to call it?{other}"
    if isinstance(value, str):
        if "bytes" in must:
            return f"pass {value.encode(errors='replace')!r}."
        return "pass it without quotes." if _is_numeral(value) else "pass one."
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        together = " or make one of them by chain(...)" if "Transform" in must else ""
        return f"pass its elements one by one{together}."
    if value is None:
        return "pass one, or leave the argument out if it has a default."
    return "pass one."
