"""--track: also log a run's records to wandb or trackio (needs `rljax[track]`)."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from rljax import processes
from rljax.run.tracker import Tracker


@contextlib.contextmanager
def tracked(
    library: str | None, name: str, numbers: Mapping[str, Any], *, resume: bool = False
) -> Iterator[tuple[Tracker, ...]]:
    """Opens a tracked run, and gives its writers for `experiment.run`.

    Only the leading process opens one.

    Args:
      library: wandb, trackio, or None for no writer.
      name: of the run in the project `rljax`.
      numbers: the configuration, shown with the run.
      resume: continue the run of this name, if there is one. Otherwise wandb refuses a
        name that is taken, and trackio makes a new run.

    Raises:
      ValueError: if the library is not installed, or cannot open the run.
    """
    if library is None or not processes.leads():
        yield ()
        return
    try:
        init = importlib.import_module(library).init
    except ImportError as error:
        raise ValueError(
            f"--track {library} must have the package {library}, got {error}; install"
            " rljax[track]."
        ) from error
    # wandb finds a run by its id, trackio by its name.
    names = {"project": "rljax", "name": name}
    if library == "wandb":
        names["id"] = name
    how = "allow" if resume else "never"
    try:
        run = init(**names, config=dict(numbers), resume=how)
    except Exception as error:  # each library has its own types
        raise ValueError(
            f"--track {library} must be able to open the run {name}, got"
            f" {type(error).__name__}: {error}; correct that, or leave the flag out."
        ) from error
    try:
        yield (Tracker(run),)
    finally:
        run.finish()
