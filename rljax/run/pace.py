"""Measures the speed of a run and estimates the time left."""

from collections.abc import Callable, Mapping

import numpy as np


class Pace:
    """Speed and time left, from the times at which dispatches finish.

    Args:
      clock: () -> seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self._clock = clock
        self.mark = clock()
        self._origin: tuple[float, int] | None = None

    @property
    def is_first(self) -> bool:
        """Whether no dispatch has finished yet."""
        return self._origin is None

    def restart(self) -> None:
        """Call when the device starts to train again, after an evaluation or a save."""
        self.mark = self._clock()

    def dispatch(self, step: int, num_steps: int) -> np.ndarray:
        """Call at the end of a dispatch; returns the end time of each of its steps.

        The host sees only the end of the last step; the others are interpolated.

        Args:
          step: training steps done.
          num_steps: of the dispatch.

        Returns:
          f64[num_steps], seconds.
        """
        start, self.mark = self.mark, self._clock()
        if self._origin is None:  # the first dispatch also compiles, so skip it
            self._origin = (self.mark, step)
        return np.linspace(start, self.mark, num_steps + 1)[1:]

    def seconds_left(self, step: int, last: int) -> float | None:
        """Seconds to step `last` at the pace so far, evaluations included, or None."""
        if self._origin is None or step <= self._origin[1]:
            return None
        seconds, first = self._origin
        return (last - step) * (self._clock() - seconds) / (step - first)


def tokens_per_second(
    metrics: Mapping[str, np.ndarray], seconds: float
) -> float | None:
    """Sampled tokens per second of a dispatch; None if its metrics do not tell."""
    if "samples/tokens" not in metrics:
        return None
    return float(np.sum(metrics["samples/tokens"])) / max(seconds, 1e-9)
