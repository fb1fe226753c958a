"""Faults that stop training: a device can report them but cannot raise."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rljax import digest, metric
from rljax.types import TrainState

MAX_FAILED = 5
"""Steps in a row in which the verifier fails for all samples, before a run stops."""


class RunFault(FloatingPointError):
    """The device reported numbers with which training must not continue."""


def find_fault(before: int, metrics: Mapping[str, Any]) -> str | None:
    """A message on the first `metric.Fault` that is not 0, or None.

    Args:
      before: training steps before the dispatch.
      metrics: of the dispatch, each a `metric.Metric` or array with f32[K] values.
    """
    for name, value in metric.faults(metrics).items():
        bad = np.flatnonzero(value)  # NaN is not zero
        if len(bad):
            return (
                f"{name} must be 0 but was {value[bad[0]]} in step"
                f" {before + bad[0] + 1} (dispatch of steps {before + 1} to"
                f" {before + len(value)})"
            )
    return None


class Refusals:
    """Counts refused updates in a row, and steps in a row without any verdict.

    Args:
      max_refused: a run stops after so many refused optimiser steps in a row.
      step: training steps done.
    """

    def __init__(self, max_refused: int, step: int):
        self._max_refused = max_refused
        self._accepted = step  # the last step with an accepted update, or the first
        self._failed_in_row = 0  # steps in which the verifier failed for all samples

    def find(self, before: int, read: Mapping[str, np.ndarray]) -> str | None:
        """Why the run must stop, or None.

        Args:
          before: training steps before the dispatch.
          read: metrics of the dispatch, f32[K] each.
        """
        return self._refused(before, read) or self._failed(before, read)

    def _refused(self, before, read):
        counts = read.get("update/refused_in_row", ())
        for step, count in enumerate(counts, before + 1):
            if count >= self._max_refused:
                return (
                    f"stopped after {int(count)} refused updates in a row between"
                    f" steps {self._accepted + 1} and {step}"
                )
            if count == 0:
                self._accepted = step
        return None

    def _failed(self, before, read):
        if "verify/failed_share" not in read:
            self._failed_in_row = 0
            return None
        for step, share in enumerate(read["verify/failed_share"], before + 1):
            self._failed_in_row = self._failed_in_row + 1 if share >= 1 else 0
            if self._failed_in_row >= MAX_FAILED:
                return (
                    "stopped because the verifier (reward) failed for every sample of"
                    f" {MAX_FAILED} steps in a row, {step + 1 - MAX_FAILED} to {step}:"
                    " nothing can be learned; see the verifier's log, or call it by"
                    " hand on one completion"
                )
        return None


def not_finite(state: TrainState) -> str | None:
    """Why training cannot continue from a state, or None.

    Infinities are allowed in the optimiser's state: a running minimum may start there.
    """
    leaves = [
        leaf.removeprefix(".")
        for leaf, found in digest.examine(state).items()
        if (leaf.startswith(".params") and (found.nan or found.infinite))
        or (leaf.startswith(".optimizer") and found.nan)
    ]
    if not leaves:
        return None
    more = f" and {len(leaves) - 1} more" if len(leaves) > 1 else ""
    return f"the state must hold finite numbers, but {leaves[0]}{more} does not"


def require_finite(state: TrainState) -> None:
    """Raises ValueError if a run cannot start from the state."""
    problem = not_finite(state)
    if problem is not None:
        raise ValueError(f"{problem} at the start; check the files it was read from.")
