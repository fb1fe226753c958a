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


class Refusals:
    """Remembers since when every update has been refused."""

    def __init__(self, most: int, step: int):
        self._most = most
        self._accepted = step  # the last step with an accepted update, or the first

    def check(self, before: int, read: Mapping[str, np.ndarray]) -> str | None:
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
