"""Small sums, differences and products, for chat models that do not reply briefly.

    What is 17 + 4? Reply with the number only.

Problems are held out as an operation with an unordered pair of numbers, so that 7 * 8
and 8 * 7 are either both trained on or both tested.
"""

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from rljax import data, verify
from rljax.layout import take
from rljax.model import Model
from rljax.task.base import Task
from rljax.task.problems import text_of


class Operation(NamedTuple):
    """An operation on two numbers.

    name: the plural of its name, for tables.
    sign: its symbol in questions.
    fn: (first, second) -> result.
    numbers: the operands.
    ordered: whether the larger operand comes first; else both orders are asked.
    """

    name: str
    sign: str
    fn: Callable[[int, int], int]
    numbers: range
    ordered: bool

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of operands, the larger one first."""
        return [
            (a, b)
            for a, b in itertools.product(self.numbers, repeat=2)
            if a > b or (a == b and not self.ordered)
        ]


OPERATIONS = (
    Operation("sums", "+", operator.add, range(2, 21), False),
    Operation("differences", "-", operator.sub, range(2, 21), True),
    Operation("products", "*", operator.mul, range(2, 13), False),
)
ENDING = " Reply with the number only."
HELD_OUT = (1 / 9, 1 / 3)
"""Fractions of each operation's pairs for validation and for the test."""


class Question(NamedTuple):
    """A problem with the group that tables count it in."""

    problem: data.Problem
    kind: str


class Splits(NamedTuple):
    """Questions for training, for choosing settings, for reporting."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


def splits(seed: int = 0) -> Splits:
    """All questions; each operation's pairs are distributed over the three parts.

    Args:
      seed: of the distribution. Use the same for runs with different seeds, so that
        test questions are never trained on.
    """
    rng = np.random.default_rng(seed)
    out = Splits([], [], [])
    for operation in OPERATIONS:
        pairs = rng.permutation(operation.pairs())
        ends = np.cumsum([round(share * len(pairs)) for share in HELD_OUT])
        validation, test, train = np.split(pairs, ends)
        for part, rows in zip(out, (train, validation, test), strict=True):
            part.extend(_questions(operation, rows.tolist()))
    return out


def _questions(operation: Operation, pairs) -> Iterator[Question]:
    for a, b in pairs:
        size = "one digit" if a < 10 else "two digits"
        orders = {(a, b)} if operation.ordered else {(a, b), (b, a)}
        for first, second in sorted(orders):
            text = f"What is {first} {operation.sign} {second}?" + ENDING
            answer = str(operation.fn(first, second))
            yield Question(data.Problem(text, answer), f"{operation.name}, {size}")


def task(
    model: Model, *, max_prompt_tokens: int, chat: data.Chat | None = None
) -> Task:
    """The questions as prompts for a model, judged by the completion's last number.

    Args:
      max_prompt_tokens: S; every question must fit.
      chat: how a question becomes a turn of a chat; None: it is the whole prompt.

    Raises:
      ValueError: if a question is too long.
    """
    parts = splits()
    questions = [question for part in parts for question in part]
    prompts, report = data.encode_prompts(
        [question.problem for question in questions],
        model.tokenizer,
        max_prompt_tokens,
        chat=chat,
    )
    if report.num_long_prompts:
        raise ValueError(
            f"max_prompt_tokens must be at least {report.longest_prompt}, the tokens of"
            f" the longest question, got {max_prompt_tokens}; raise it."
        )
    ends = np.cumsum([0, *map(len, parts)])
    train, validation, test = (
        take(prompts, slice(start, end)) for start, end in itertools.pairwise(ends)
    )
    return Task(
        train,
        validation,
        test,
        verify=verify.last_number(text_of(model)),
        group=("questions", np.array([question.kind for question in parts.test])),
    )
