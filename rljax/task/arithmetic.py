"""Small sums, differences and products, plain and in words, for a chat model.

    What is 17 + 24? Reply with the number only.
    Mia has 17 coins and buys 24 more. How many coins does Mia have now? Reply ...

A problem is an operation and two numbers, whatever the order, the names or the wording:
held out are such pairs, so that 7 * 8, 8 * 7 and eight boxes of seven pens are all
trained on or all tested.
"""

import itertools
import operator
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from rljax import data, verify
from rljax.model import Model
from rljax.task.base import Task
from rljax.task.problems import text_of
from rljax.types import Prompts


class Operation(NamedTuple):
    """An operation on two numbers.

    name: of its plural, for tables.
    sign: as it is written.
    fn: what it computes.
    numbers: that are its operands.
    ordered: whether the larger operand comes first; else both orders are asked.
    words: texts of a word problem; its names and things are `NAMES` and `THINGS`.
    """

    name: str
    sign: str
    fn: Callable[[int, int], int]
    numbers: range
    ordered: bool
    words: tuple[str, ...]

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of operands, the larger one first."""
        return [
            (a, b)
            for a, b in itertools.product(self.numbers, repeat=2)
            if a > b or (a == b and not self.ordered)
        ]


OPERATIONS = (
    Operation(
        "sums",
        "+",
        operator.add,
        range(2, 31),
        False,
        (
            "{name} has {a} {things} and buys {b} more. How many {things} does {name}"
            " have now?",
            "There are {a} {things} on the table and {b} in the box. How many {things}"
            " are there in all?",
        ),
    ),
    Operation(
        "differences",
        "-",
        operator.sub,
        range(2, 31),
        True,
        (
            "{name} has {a} {things} and gives away {b}. How many {things} are left?",
            "There were {a} {things} in the box. {name} took {b} of them. How many"
            " {things} are in the box now?",
        ),
    ),
    Operation(
        "products",
        "*",
        operator.mul,
        range(2, 16),
        False,
        (
            "{name} has {a} boxes with {b} {things} each. How many {things} is that?",
            "There are {a} tables with {b} {things} on each. How many {things} are"
            " there in all?",
        ),
    ),
)
NAMES = ("Anna", "Ben", "Lily", "Mia", "Sam", "Tom")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens")
ENDING = " Reply with the number only."


class Question(NamedTuple):
    """kind: what the tables count it under."""

    problem: data.Problem
    kind: str


class Splits(NamedTuple):
    """Questions to train on, to choose settings by, to report."""

    train: list[Question]
    validation: list[Question]
    test: list[Question]


def splits(
    seed: int = 0, *, num_train: int, num_validation: int, num_test: int
) -> Splits:
    """Draws the questions; each kind, plain or in words, is asked as often.

    A held-out pair of numbers is asked twice: plain, and in words.

    Args:
      seed: of the draw; keep it over the seeds of a run, so that test stays test.
      num_train, num_validation, num_test: questions, multiples of 6, the kinds.

    Raises:
      ValueError: for other numbers, or if more is held out than half of the pairs.
    """
    kinds = 2 * len(OPERATIONS)
    sizes = (num_train, num_validation, num_test)
    each = [size // kinds for size in sizes]
    most = min(len(op.pairs()) for op in OPERATIONS) // 2
    if any(size % kinds or size < kinds for size in sizes) or sum(each[1:]) > most:
        raise ValueError(
            f"num_train, num_validation and num_test must be multiples of {kinds}, the"
            f" kinds of questions, and the latter two at most {most * kinds} together,"
            f" got {num_train}, {num_validation} and {num_test}; change them."
        )
    rng = np.random.default_rng(seed)
    out = Splits([], [], [])
    for operation in OPERATIONS:
        pairs = rng.permutation(operation.pairs())
        ends = np.cumsum(each[1:])
        validation, test, train = np.split(pairs, ends)
        train = train[np.arange(each[0]) % len(train)]
        for part, rows in zip(out, (train, validation, test), strict=True):
            part.extend(_questions(operation, rows.tolist(), rng))
    return out


def _questions(operation: Operation, pairs, rng) -> Iterator[Question]:
    for a, b in pairs:
        answer = str(operation.fn(a, b))
        plain = f"What is {{a}} {operation.sign} {{b}}?"
        for kind, texts in (("", (plain,)), (" in words", operation.words)):
            first, second = (a, b) if operation.ordered else rng.permutation([a, b])
            text = rng.choice(texts).format(
                a=first, b=second, name=rng.choice(NAMES), things=rng.choice(THINGS)
            )
            problem = data.Problem(text + ENDING, answer)
            yield Question(problem, operation.name + kind)


def task(
    model: Model,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    max_prompt_tokens: int,
    chat: data.Chat | None = None,
) -> Task:
    """The questions as prompts of a model, judged by the completion's last number.

    Args:
      num_train, num_validation, num_test: as in `splits`.
      max_prompt_tokens: must hold every question.
      chat: how a question becomes a turn of a chat; None: it is the whole prompt.

    Raises:
      ValueError: if a question is too long, or as `splits` does.
    """
    parts = splits(
        num_train=num_train, num_validation=num_validation, num_test=num_test
    )
    questions = [question for part in parts for question in part]
    prompts, report = data.encode_prompts(
        [question.problem for question in questions],
        model.tokenizer,
        max_prompt_tokens,
        chat=chat,
    )
    if report.num_long_prompts:
        raise ValueError(
            f"max_prompt_tokens must hold every question, got {max_prompt_tokens};"
            f" the longest has {report.longest_prompt}."
        )
    ends = np.cumsum([0, *map(len, parts)])
    train, validation, test = (
        rows(prompts, slice(start, end)) for start, end in itertools.pairwise(ends)
    )
    return Task(
        train,
        validation,
        test,
        verify=verify.last_number(text_of(model)),
        group=("questions", np.array([question.kind for question in parts.test])),
    )


def rows(prompts: Prompts, index) -> Prompts:
    """Some of the prompts."""
    return jax.tree.map(lambda x: x[index], prompts)
