"""Range checks of hyper-parameters, for factories.

Numbers may be traced (a population is a `vmap` over them): only concrete ones are
checked.
"""

import itertools
import math

import jax


def number(name: str, value, *, above=-math.inf, below=math.inf, low=None, high=None):
    """Raises ValueError unless `above < value < below` and `low <= value <= high`.

    Args:
      name: the argument's name, for the message.
      value: a number, a concrete array (all entries are checked) or a tracer (none is).
      above, below: exclusive bounds.
      low, high: inclusive bounds; they replace the exclusive one on their side.
    """
    if isinstance(value, jax.core.Tracer):
        return
    entries = value.ravel().tolist() if hasattr(value, "ravel") else [value]
    for x in entries:
        above_ok = x >= low if low is not None else x > above
        below_ok = x <= high if high is not None else x < below
        if not (above_ok and below_ok):
            left = f"[{low}" if low is not None else f"({above}"
            right = f"{high}]" if high is not None else f"{below})"
            raise ValueError(f"{name} must lie in {left}, {right}, got {x}.")


def ordered(**values):
    """Raises ValueError unless the concrete ones of these numbers do not decrease."""
    known = {k: v for k, v in values.items() if not isinstance(v, jax.core.Tracer)}
    numbers = list(known.values())
    if any(a > b for a, b in itertools.pairwise(numbers)):
        got = ", ".join(f"{k}={v}" for k, v in known.items())
        raise ValueError(f"need {' <= '.join(known)}, got {got}.")
