"""How fast a run is, and how long it will take."""

from collections.abc import Callable, Mapping

import numpy as np


class Pace:
    """Throughput and time left, from when dispatches are seen to finish.

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
        """Call when the device starts to work again, after an evaluation."""
        self.mark = self._clock()

    def dispatch(self, step: int, num_steps: int) -> np.ndarray:
        """f64[num_steps]: when each step of the dispatch that ends with `step` ended.

        The host sees only the last of them; the others are put at equal distances.
        """
        start, self.mark = self.mark, self._clock()
        if self._origin is None:  # the first dispatch compiles: it says nothing
            self._origin = (self.mark, step)
        return np.linspace(start, self.mark, num_steps + 1)[1:]

    def seconds_left(self, step: int, last: int) -> float | None:
        """At this phase's pace, evaluations included; None when nothing is known."""
        if self._origin is None or step <= self._origin[1]:
            return None
        seconds, first = self._origin
        return (last - step) * (self._clock() - seconds) / (step - first)


def tokens_per_second(
    metrics: Mapping[str, np.ndarray], seconds: float
) -> float | None:
    """Sampled tokens of a dispatch over its seconds, if its steps count them."""
    if "samples/tokens" not in metrics:
        return None
    return float(np.sum(metrics["samples/tokens"])) / max(seconds, 1e-9)
