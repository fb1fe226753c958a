"""Logs the records of a run to wandb or trackio (`pip install rljax[track]`).

The completions of an evaluation are logged as one text, because the two libraries have
different types for tables.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from rljax.run import record, shown
from rljax.run.record import Record


class TrackedRun(Protocol):
    """What `wandb.init` and `trackio.init` return; their caller must finish the run."""

    def log(self, metrics: dict[str, Any], step: int | None = None) -> None: ...


class Tracker:
    """Logs steps, evaluations and completions to a run of wandb or trackio.

    A resumed run logs the steps after its checkpoint again, with the same numbers;
    wandb ignores steps that it already has. To continue the same run in the browser,
    open it with the same id (wandb) or name (trackio) and `resume="allow"`.

    Example:
      with wandb.init(project="mine", id=run_dir.name, resume="allow") as run:
          experiment.run(..., writers=[Tracker(run)])
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
