"""Parameters that nothing moves, apart from those that are trained.

`TrainState.params` holds the trained ones: they alone have gradients, moments and a
reference. `TrainState.frozen` holds the others once, for the policy, its reference and
its teacher. Both are nested dictionaries; `joined` puts them together where a policy
reads them, in traced code, where it copies nothing.
"""

from collections.abc import Callable
from typing import Any

Trains = Callable[[tuple[str, ...]], bool]
"""Names from the root to a parameter -> whether it is trained."""


def split(params: dict[str, Any], trains: Trains) -> tuple[dict, dict]:
    """(trained, frozen): two trees without a common leaf, `joined` of which is params.

    Args:
      params: nested dictionaries of arrays.
      trains: of the names of a leaf, such as ("layers", "q", "kernel").

    Raises:
      ValueError: if nothing is trained.
    """
    trained, frozen = _split(params, trains, ())
    if not trained:
        raise ValueError(
            f"trains must choose at least one parameter of {sorted(params)}, but chose"
            " none; it takes a leaf's names from the root on."
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
    """The tree that a policy reads: the leaves of both; without frozen ones, trained.

    Args:
      trained: what `TrainState.params` or `TrainState.reference` holds, or None.
      frozen: what `TrainState.frozen` holds, or None.

    Raises:
      ValueError: if a name stands for a parameter in both.
    """
    if trained is None or frozen is None:
        return trained
    return _joined(trained, frozen, ())


def _joined(trained, frozen, above):
    both = {**frozen, **trained}
    for name in trained.keys() & frozen.keys():
        path = (*above, name)
        pair = trained[name], frozen[name]
        if not all(isinstance(one, dict) for one in pair):
            raise ValueError(
                "trained and frozen parameters must differ, but both have"
                f" {'/'.join(path)}; split the whole tree with `frozen.split`."
            )
        both[name] = _joined(*pair, path)
    return both
