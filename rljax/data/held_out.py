"""Held-out problems: parts of a data set that share no question.

If a data set were split by rows, a repeated question could be trained on and tested.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from rljax.data.problem import Question, question_text


class Split(NamedTuple):
    """Rows of a data set; `str(split)` is a line for the log.

    held_out: i64[...] rows of each held-out part, in the order of the sizes.
    train: i64[...] the rows of all other questions, repeated ones included.
    num_left_out: rows in no part, because they repeat a held-out question.
    num_elsewhere: of these, rows with a question of another test file.
    """

    held_out: tuple[np.ndarray, ...]
    train: np.ndarray
    num_left_out: int
    num_elsewhere: int = 0

    def __str__(self) -> str:
        parts = " and ".join(str(len(rows)) for rows in self.held_out)
        text = (
            f"{len(self.train)} problems to train on, {parts} held out; no question is"
            f" in two of these: {self.num_left_out} left out that repeat a held-out one"
        )
        if self.num_elsewhere:
            text += f", {self.num_elsewhere} of them from the test data"
        return text


def same_question(question: Question) -> str:
    """The words of a question without extra blanks; equal for repeated questions.

    For a conversation: the words of all messages but the system's. For tokens: the ids.
    """
    return " ".join(question_text(question).split())


def num_repeated(questions: Sequence[Question]) -> int:
    """Number of questions that repeat an earlier one."""
    return len(questions) - len(set(map(same_question, questions)))


def by_question(
    questions: Sequence[Question],
    sizes: Sequence[int],
    *,
    seed: int,
    elsewhere: Sequence[Question] = (),
) -> Split:
    """Splits at random so that no question is in two parts.

    Held-out parts contain each of their questions once. If no question is repeated,
    the parts are slices of a random permutation.

    Args:
      questions: the questions of all rows.
      sizes: number of questions in each held-out part.
      seed: of the permutation.
      elsewhere: questions of another test file; rows with one of them are in no part.

    Raises:
      ValueError: if there are not more different questions than to be held out.
    """
    words = [same_question(question) for question in questions]
    tested = set(map(same_question, elsewhere))
    order = np.random.default_rng(seed).permutation(len(words))
    first = _first_rows(words, order, tested)
    if len(first) <= sum(sizes):
        also = " that no other file tests" if elsewhere else ""
        raise ValueError(
            f"there must be more different questions{also} than the {sum(sizes)} to"
            f" hold out, got {len(first)} in {len(words)} problems; add more."
        )
    rows = np.array(list(first.values()))
    *held_out, _ = np.split(rows, np.cumsum(sizes))
    num_elsewhere = sum(word in tested for word in words)
    tested |= {words[row] for part in held_out for row in part.tolist()}
    train = np.array([row for row in order.tolist() if words[row] not in tested])
    left_out = len(words) - len(train) - sum(sizes)
    return Split(tuple(held_out), train, left_out, num_elsewhere)


def different(questions: Sequence[Question], size: int, *, seed: int) -> np.ndarray:
    """i64[at most size]: rows of different questions, drawn at random."""
    words = [same_question(question) for question in questions]
    order = np.random.default_rng(seed).permutation(len(words))
    rows = list(_first_rows(words, order).values())
    return np.array(rows[:size], np.int64)


def _first_rows(
    words: Sequence[str], order: np.ndarray, excluded: Collection[str] = ()
) -> dict[str, int]:
    """The words of each question -> its first row in this order."""
    first: dict[str, int] = {}
    for row in order.tolist():
        if words[row] not in excluded:
            first.setdefault(words[row], row)
    return first
