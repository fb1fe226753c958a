"""Held-out problems: no question on both sides, and what is not lost by it."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rljax.data import held_out


def test_without_repeated_questions_it_is_a_permutation_that_is_cut():
    questions = [f"q{i}" for i in range(20)]
    split = held_out.by_question(questions, (3, 5), seed=0)
    order = np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(split.held_out[0], order[:3])
    np.testing.assert_array_equal(split.held_out[1], order[3:8])
    np.testing.assert_array_equal(split.train, order[8:])
    assert split.num_left_out == 0


def test_sixty_problems_of_ten_questions_share_none_between_parts():
    # Split by rows, all of 7 test questions were in the training data.
    questions = [f"q{i % 10}" for i in range(60)]
    split = held_out.by_question(questions, (2, 3), seed=0)
    validation, test = ({questions[i] for i in rows} for rows in split.held_out)
    train = {questions[i] for i in split.train}
    assert (len(validation), len(test), len(train)) == (2, 3, 5)
    assert not validation & test and not (validation | test) & train
    assert [len(rows) for rows in (*split.held_out, split.train)] == [2, 3, 30]
    assert str(split) == (
        "30 problems to train on, 2 and 3 held out; no question is in two of these: 25"
        " left out that repeat a held-out one"
    )


def test_blanks_make_no_other_question():
    questions = ["what is 1+1?", " what  is 1+1?\n", "what is 11?"]
    assert held_out.num_repeated(questions) == 1
    split = held_out.by_question(questions, (1,), seed=3)
    sides = [{held_out.same_question(questions[i]) for i in x} for x in split[:1][0]]
    assert not sides[0] & {held_out.same_question(questions[i]) for i in split.train}


@hypothesis.given(
    st.lists(st.integers(0, 8), min_size=1, max_size=30),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.integers(0, 5),
)
def test_every_row_is_in_one_part_or_repeats_a_held_out_question(names, sizes, seed):
    questions = [f"q{i}" for i in names]
    if len(set(questions)) <= sum(sizes):
        with pytest.raises(ValueError, match="more different questions than"):
            held_out.by_question(questions, sizes, seed=seed)
        return
    split = held_out.by_question(questions, sizes, seed=seed)
    assert [len(rows) for rows in split.held_out] == sizes
    parts = [rows.tolist() for rows in (*split.held_out, split.train)]
    used = [row for rows in parts for row in rows]
    assert len(used) == len(set(used))
    tested = {questions[i] for rows in parts[:-1] for i in rows}
    assert not tested & {questions[i] for i in parts[-1]}
    left_out = set(range(len(questions))) - set(used)
    assert {questions[i] for i in left_out} <= tested
    assert split.num_left_out == len(left_out)
