"""Small arithmetic: every kind as often, and nothing held out is trained on."""

import re
from collections import Counter

import numpy as np
import pytest

from rljax.data import tokenizer
from rljax.model import DecoderConfig, language_model
from rljax.task import arithmetic

SIZES = {"num_train": 1200, "num_validation": 60, "num_test": 180}
WORDS = tokenizer.character_tokenizer("".join(map(chr, range(32, 127))))


@pytest.fixture(scope="module")
def splits():
    return arithmetic.splits(**SIZES)


@pytest.fixture(scope="module")
def model():
    config = DecoderConfig(
        vocab_size=len(WORDS),
        num_layers=1,
        d_model=8,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        d_ff=8,
    )
    return language_model.new(config, WORDS)


def essence(question):
    """Operation and numbers, whatever order, names and wording."""
    numbers = sorted(map(int, re.findall(r"\d+", question.problem.question)))
    return (question.kind.split()[0], *numbers)


def test_a_held_out_pair_is_nowhere_trained_on_in_any_order_or_wording(splits):
    # Splitting by question would train on 8 * 7 and test 7 * 8, or the boxes of it.
    train, validation, test = ({essence(q) for q in part} for part in splits)
    assert not train & test and not train & validation and not validation & test


def test_every_kind_is_asked_as_often(splits):
    for part, size in zip(splits, SIZES.values(), strict=True):
        counts = Counter(question.kind for question in part)
        assert len(counts) == 6 and set(counts.values()) == {size // 6}


def test_the_held_out_questions_differ(splits):
    texts = [q.problem.question for q in (*splits.validation, *splits.test)]
    assert len(set(texts)) == len(texts)


def test_answers_are_right_by_the_text_alone(splits):
    signs = {"sums": "+", "differences": "-", "products": "*"}
    for question in (*splits.train, *splits.test):
        a, b = re.findall(r"\d+", question.problem.question)
        sign = signs[question.kind.split()[0]]
        assert question.problem.answer == str(eval(f"{a} {sign} {b}")), question
        assert int(question.problem.answer) > 0
        assert ("words" in question.kind) == (f" {sign} " not in question.problem[0])


def test_another_seed_holds_out_others(splits):
    other = arithmetic.splits(1, **SIZES)
    first, second = ({essence(q) for q in s.test} for s in (splits, other))
    assert len(first - second) > len(first) // 2


@pytest.mark.parametrize("sizes", [(61, 60, 60), (60, 0, 60), (60, 600, 60)])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match=r"multiples of 6, .* at most 312 together"):
        arithmetic.splits(**dict(zip(SIZES, sizes, strict=True)))


def test_the_task_has_prompts_answers_and_kinds(model, splits):
    task = arithmetic.task(model, **SIZES, max_prompt_tokens=140)
    text = WORDS.decode(task.test.tokens[0][: task.test.length[0]])
    assert text == splits.test[0].problem.question
    answers = [bytes(row).rstrip(b"\0").decode() for row in task.test.data["answer"]]
    assert answers == [q.problem.answer for q in splits.test]
    assert task.group is not None
    assert np.array_equal(task.group[1], [q.kind for q in splits.test])
    assert len(set(task.train.id.tolist()) & set(task.test.id.tolist())) == 0


def test_a_question_that_does_not_fit_is_an_error_not_a_smaller_test(model):
    with pytest.raises(ValueError, match="max_prompt_tokens must hold every question"):
        arithmetic.task(model, **SIZES, max_prompt_tokens=60)
