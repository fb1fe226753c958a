"""Splits parameters into trained and frozen ones, and joins them again.

`TrainState.params` holds the trained parameters; only they have gradients, moments and
a reference copy. `TrainState.frozen` holds the others once, for the policy, its
reference and its teacher. Both are nested dictionaries. `joined` merges them where a
policy reads them; in traced code this copies nothing.
"""

from collections.abc import Callable
from typing import Any

Trains = Callable[[tuple[str, ...]], bool]
"""Names from the root to a parameter -> whether it is trained."""


def split(params: dict[str, Any], trains: Trains) -> tuple[dict, dict]:
    """(trained, frozen): two trees that share no leaf; `joined` gives params again.

    Args:
      params: nested dictionaries of arrays.
      trains: names of a leaf, such as ("layers", "q", "kernel") -> whether it is
        trained.

    Raises:
      ValueError: if nothing is trained.
    """
    trained, frozen = _split(params, trains, ())
    if not trained:
        raise ValueError(
            f"trains must choose at least one parameter of {sorted(params)}, but chose"
            " none; it takes the names from the root to a leaf."
        )
    return trained, frozen


def _split(params, trains, above):
    parts = ({}, {})
    for name, value in params.items():
        path = (*above, name)
        if isinstance(value, dict):
            found = _split(value, trains, path)
        else:
            found = (value, None) if trains(path) else (None, value)
        for part, one in zip(parts, found, strict=True):
            if one is not None and not (isinstance(one, dict) and not one):
                part[name] = one
    return parts


def joined(trained: Any, frozen: Any = None) -> Any:
    """The whole tree that a policy reads; if `frozen` is None, `trained` itself.

    Args:
      trained: `TrainState.params`, or `TrainState.reference`. What is no dictionary,
        such as None, is returned as it is.
      frozen: `TrainState.frozen`, which may be None.

    Raises:
      ValueError: if both trees hold the same parameter.
    """
    if not isinstance(trained, dict) or frozen is None:
        return trained
    return _joined(trained, frozen, ())


def _joined(trained, frozen, above):
    both = {**frozen, **trained}
    for name in trained.keys() & frozen.keys():
        path = (*above, name)
        pair = trained[name], frozen[name]
        if not all(isinstance(one, dict) for one in pair):
            raise ValueError(
                "trained and frozen parameters must have no name in common, but both"
                f" have {'/'.join(path)}; split the whole tree with `frozen.split`."
            )
        both[name] = _joined(*pair, path)
    return both
