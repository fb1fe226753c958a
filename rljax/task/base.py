"""The type of tasks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rljax.types import Prompts, Samples, Verdict


class Task(NamedTuple):
    """What is to be solved, and how it is judged.

    train: problems to train on. validation: to choose settings by. test: to report.
    verify: (prompts, samples) -> Verdict, in the graph or, for the split loop, of NumPy
      arrays.
    group: name and value i[P] per test problem, to split pass@1 by.
    """

    train: Prompts
    validation: Prompts
    test: Prompts
    verify: Callable[[Prompts, Samples], Verdict]
    group: tuple[str, np.ndarray] | None = None
