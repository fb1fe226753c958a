"""When training must stop: what the device reports but cannot raise."""

from collections.abc import Mapping

import numpy as np


class RunFault(FloatingPointError):
    """The device reported numbers that training must not go on with."""


def problem(before: int, read: Mapping[str, np.ndarray]) -> str | None:
    for name, value in read.items():
        bad = np.flatnonzero(value)  # NaN is not zero
        if "fault" in name.split("/") and len(bad):
            return (
                f"{name} must be 0 but was {value[bad[0]]} in step"
                f" {before + bad[0] + 1} (dispatch of steps {before + 1} to"
                f" {before + len(value)})"
            )
    return None


MAX_FAILED = 5
"""Training steps in a row in which the verifier may fail for all samples."""


class Refusals:
    """Remembers since when every update has been refused, or every verdict missing."""

    def __init__(self, most: int, step: int):
        self._most = most
        self._accepted = step  # the last step with an accepted update, or the first
        self._failed_in_row = 0  # steps in which the verifier failed for all

    def check(self, before: int, read: Mapping[str, np.ndarray]) -> str | None:
        return self._refused(before, read) or self._failed(before, read)

    def _refused(self, before, read):
        counts = read.get("update/refused_in_row", ())
        for step, count in enumerate(counts, before + 1):
            if count >= self._most:
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
                    " nothing can be learned; its log says why, call it by hand on one"
                    " completion"
                )
        return None
