"""The type of tasks."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rljax.types import Prompts, Samples, Verdict


class Task(NamedTuple):
    """Problems, and how their solutions are judged.

    train, validation, test: problems for training, for choosing settings, for
      reporting.
    verify: (prompts, samples) -> Verdict, traceable or, for `program.split`, a function
      of NumPy arrays.
    group: (name, values [P], one per test problem); tables split pass@1 by them. None:
      no such table.
    """

    train: Prompts
    validation: Prompts
    test: Prompts
    verify: Callable[[Prompts, Samples], Verdict]
    group: tuple[str, np.ndarray] | None = None
