"""--track: the records of a run in wandb or trackio, too; it takes `rljax[track]`."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from rljax import processes
from rljax.run.tracker import Tracker


@contextlib.contextmanager
def tracked(
    kind: str | None, name: str, numbers: Mapping[str, Any]
) -> Iterator[tuple[Tracker, ...]]:
    """Writers for `experiment.run`: the one that `kind` names, of the leading process.

    Args:
      kind: a library whose `init` opens a run, or None.
      name: of the run in the project `rljax`; a resumed run goes on under the same.
      numbers: the run's configuration, to be shown there.

    Raises:
      ValueError: if the library is not installed.
    """
    if kind is None or not processes.leads():
        yield ()
        return
    try:
        library = importlib.import_module(kind)
    except ImportError as error:
        raise ValueError(
            f"--track {kind} must have the package {kind}, got {error}; install"
            " rljax[track]."
        ) from error
    # Each names by another argument what a resumed run is known by.
    known_by = {"id": name} if kind == "wandb" else {}
    run = library.init(
        project="rljax", name=name, config=dict(numbers), resume="allow", **known_by
    )
    try:
        yield (Tracker(run),)
    finally:
        run.finish()
