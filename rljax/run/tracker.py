"""Logs the records of a run to wandb or trackio (`pip install rljax[track]`).

The completions of an evaluation are logged as one text, because the two libraries have
different types for tables.
"""

import contextlib
import importlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from rljax import processes
from rljax.run import record, shown
from rljax.run.record import Record
from rljax.run.writer import Writer

Track = Callable[[pathlib.Path], contextlib.AbstractContextManager[tuple[Writer, ...]]]
"""Run folder -> a context that gives further writers."""


@contextlib.contextmanager
def nowhere(folder: pathlib.Path) -> Iterator[tuple[Writer, ...]]:
    """Opens nothing: no further writer."""
    del folder
    yield ()


def opener(library: str, config: Mapping[str, Any], *, resume: bool) -> Track:
    """Opens a run in wandb or trackio while the training runs, in the leader only.

    The run has the name of the run folder.

    Args:
      library: wandb or trackio.
      config: values by name, shown with the run.
      resume: continue the run of this name, if there is one. Otherwise wandb refuses a
        name that is taken, and trackio makes a new run.

    Raises:
      ValueError: if the library is not installed, or, in the context, if it cannot open
        the run.
    """
    try:
        init = importlib.import_module(library).init
    except ImportError as error:
        raise ValueError(
            f"--track {library} must find its package, got {error}; pip install"
            " rljax[track], or leave it out."
        ) from error

    @contextlib.contextmanager
    def opened(folder: pathlib.Path) -> Iterator[tuple[Writer, ...]]:
        named = {"project": "rljax", "name": folder.name}
        if library == "wandb":
            named["id"] = folder.name
        how = "allow" if resume else "never"
        try:
            run = init(**named, config=dict(config), resume=how)
        except Exception as error:  # each library has its own
            raise ValueError(
                f"--track {library} must be able to open the run {folder.name}, but"
                f" {type(error).__name__}: {error}; mend that, or leave it out."
            ) from error
        try:
            yield (Tracker(run),)
        finally:
            run.finish()

    return opened if processes.leads() else nowhere


class TrackedRun(Protocol):
    """What `wandb.init` and `trackio.init` return; their caller must finish the run."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None: ...


class Tracker:
    """Logs steps, evaluations and completions to a run of wandb or trackio.

    A resumed run logs the steps after its checkpoint again, with the same numbers;
    wandb ignores steps that it already has.
    """

    def __init__(self, run: TrackedRun):
        self._run = run

    def write(self, records: Sequence[Record]) -> None:
        for entry in records:
            if entry["kind"] in ("step", "evaluation"):
                values = {name: float(v) for name, v in record.curves(entry).items()}
                self._log(values, entry["step"])
        texts: dict[int, list[str]] = {}
        for entry in records:
            if entry["kind"] == "completion":
                texts.setdefault(entry["step"], []).append(shown.completion(entry))
        for step, found in texts.items():
            self._log({"completions": "\n\n".join(found)}, step)

    def _log(self, values: dict[str, Any], step: int) -> None:
        try:
            self._run.log(values, step=step)
        except Exception as error:  # each library has its own types for network errors
            raise OSError(f"could not log to {self._run!r}: {error}") from error

    def sync(self) -> None:
        pass  # both libraries send in the background

    def close(self) -> None:
        pass  # the caller of `init` finishes the run
