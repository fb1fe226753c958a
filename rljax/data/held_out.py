"""Held-out problems: parts of a data set that share no question.

A question that is in the training data twice is, split by rows, in the test as well.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Rows of a data set; `str(split)` is a line for the log.

    held_out: i64[...] rows of each held-out part, in the order asked for.
    train: i64[...] the rows of all other questions, repeated ones included.
    num_left_out: rows in no part, as their question is a held-out one once more.
    """

    held_out: tuple[np.ndarray, ...]
    train: np.ndarray
    num_left_out: int

    def __str__(self) -> str:
        parts = " and ".join(str(len(rows)) for rows in self.held_out)
        return (
            f"{len(self.train)} problems to train on, {parts} held out; no question is"
            f" in two of these: {self.num_left_out} left out that repeat a held-out one"
        )


def same_question(question: str) -> str:
    """What two problems must share to be the same: their words, whatever the blanks."""
    return " ".join(question.split())


def num_repeated(questions: Sequence[str]) -> int:
    """How many questions repeat an earlier one."""
    return len(questions) - len(set(map(same_question, questions)))


def by_question(questions: Sequence[str], sizes: Sequence[int], *, seed: int) -> Split:
    """Splits at random, every question to one part; held-out parts have each once.

    Where no question is repeated this is a random permutation, cut.

    Args:
      questions: of all rows.
      sizes: of the held-out parts, different questions.
      seed: of the permutation.

    Raises:
      ValueError: if there are not more different questions than are to be held out.
    """
    words = [same_question(question) for question in questions]
    order = np.random.default_rng(seed).permutation(len(words))
    first = {}  # of each question, the row that comes first
    for row in order.tolist():
        first.setdefault(words[row], row)
    if len(first) <= sum(sizes):
        raise ValueError(
            f"there must be more different questions than the {sum(sizes)} to hold"
            f" out, got {len(first)} in {len(words)} problems; bring more."
        )
    rows = np.array(list(first.values()))
    *held_out, _ = np.split(rows, np.cumsum(sizes))
    tested = {words[row] for part in held_out for row in part.tolist()}
    train = np.array([row for row in order.tolist() if words[row] not in tested])
    left_out = len(words) - len(train) - sum(sizes)
    return Split(tuple(held_out), train, left_out)
