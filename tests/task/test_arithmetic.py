"""Small arithmetic: nothing held out is trained on, in any order."""

import re
from collections import Counter

import numpy as np
import pytest

from rljax.data import tokenizer
from rljax.model import DecoderConfig, language_model
from rljax.task import arithmetic

SIZE = ("one", "two")
WORDS = tokenizer.character_tokenizer("".join(map(chr, range(32, 127))))


@pytest.fixture(scope="module")
def splits():
    return arithmetic.splits()


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
    """Operation and numbers, whatever their order."""
    numbers = sorted(map(int, re.findall(r"\d+", question.problem.question)))
    return (question.kind.split(",")[0], *numbers)


def test_a_held_out_pair_is_nowhere_trained_on_in_any_order(splits):
    # Splitting by question would train on 8 * 7 and test 7 * 8.
    train, validation, test = ({essence(q) for q in part} for part in splits)
    assert not train & test and not train & validation and not validation & test


def test_every_question_is_asked_once_in_one_of_the_parts(splits):
    # 19 * 18 sums of different numbers and 19 of equal ones; half as many differences.
    counts = Counter(q.kind.split(",")[0] for part in splits for q in part)
    assert counts == {"sums": 19 * 19, "differences": 19 * 9, "products": 11 * 11}
    kinds = {question.kind for question in splits.test}
    assert kinds == {
        f"{o}, {s} digit{'s' * (s == 'two')}" for o in counts for s in SIZE
    }


def test_the_held_out_questions_differ(splits):
    texts = [q.problem.question for q in (*splits.validation, *splits.test)]
    assert len(set(texts)) == len(texts)


def test_answers_are_right_by_the_text_alone(splits):
    signs = {"sums": "+", "differences": "-", "products": "*"}
    for question in (*splits.train, *splits.test):
        a, b = re.findall(r"\d+", question.problem.question)
        sign = signs[question.kind.split(",")[0]]
        assert question.problem.answer == str(eval(f"{a} {sign} {b}")), question
        assert int(question.problem.answer) > 0
        assert ("one digit" in question.kind) == (max(int(a), int(b)) < 10)


def test_another_seed_holds_out_others(splits):
    other = arithmetic.splits(1)
    first, second = ({essence(q) for q in s.test} for s in (splits, other))
    assert len(first - second) > len(first) // 2


def test_the_task_has_prompts_answers_and_kinds(model, splits):
    task = arithmetic.task(model, max_prompt_tokens=140)
    text = WORDS.decode(task.test.tokens[0][: task.test.length[0]])
    assert text == splits.test[0].problem.question
    answers = [bytes(row).rstrip(b"\0").decode() for row in task.test.data["answer"]]
    assert answers == [q.problem.answer for q in splits.test]
    assert task.group is not None
    assert np.array_equal(task.group[1], [q.kind for q in splits.test])
    assert len(set(task.train.id.tolist()) & set(task.test.id.tolist())) == 0


def test_a_question_that_does_not_fit_is_an_error_not_a_smaller_test(model):
    with pytest.raises(ValueError, match="max_prompt_tokens must be at least "):
        arithmetic.task(model, max_prompt_tokens=42)
