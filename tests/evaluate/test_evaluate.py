"""Held-out accuracy: golden numbers by hand and properties of the estimator."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljax import evaluate


def _rows(*counts, n):
    """bool[P, n] with the given numbers of correct samples."""
    return np.array([[i < c for i in range(n)] for c in counts])


def test_pass_at_k_by_hand():
    # n = 4. c = 1: 1 - C(3,2)/C(4,2) = 1 - 3/6 = 1/2. c = 3: C(1,2) = 0, so 1.
    # c = 0: 0. Mean 1/2; deviations 0, 1/2, -1/2: variance (1/2)/2 = 1/4, standard
    # error 1/2 / sqrt(3). Plugging in 1 - (1 - c/n)^k would give 7/16 for c = 1;
    # dividing by P instead of P - 1 would give an error of 0.2357.
    got = evaluate.pass_at_k(_rows(1, 3, 0, n=4), 2)
    assert got.mean == pytest.approx(0.5)
    assert got.error == pytest.approx(0.5 / np.sqrt(3))


def test_pass_at_1_is_the_mean_solve_rate():
    # Rates 1/4, 3/4: mean 1/2, standard deviation sqrt(1/8), error sqrt(1/16).
    got = evaluate.pass_at_k(_rows(1, 3, n=4), 1)
    assert got == pytest.approx((0.5, 0.25))


def test_pass_at_n_is_whether_any_sample_is_correct():
    assert evaluate.pass_at_k(_rows(1, 0, 8, 0, n=8), 8).mean == pytest.approx(0.5)


def test_large_counts_do_not_overflow():
    # c = n/2 of n = 2000: all k = 1000 tries wrong has probability 1/C(2000, 1000).
    assert evaluate.pass_at_k(_rows(1000, n=2000), 1000).mean == pytest.approx(1.0)


@given(st.integers(1, 6).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_k_counts_the_subsets_with_a_correct_sample(case):
    n, c = case
    row = _rows(c, n=n)
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(row[0], k))
        want = sum(map(any, subsets)) / len(subsets)
        assert evaluate.pass_at_k(row, k).mean == pytest.approx(want)


def test_one_problem_has_no_error():
    got = evaluate.pass_at_k(_rows(2, n=4), 1)
    assert np.isnan(got.error)
    assert str(got) == "50.0 ± ?"


@pytest.mark.parametrize("k", [0, 5])
def test_k_outside_the_samples_is_refused(k):
    with pytest.raises(ValueError, match=r"k must be in \[1, 4\]"):
        evaluate.pass_at_k(_rows(1, n=4), k)


@pytest.mark.parametrize(
    "correct", [np.ones((2, 2)), np.ones(3, bool), np.ones((0, 4), bool)]
)
def test_other_arrays_than_verdicts_are_refused(correct):
    # A float array of rewards would be averaged without complaint.
    with pytest.raises(ValueError, match="correct must be bool"):
        evaluate.pass_at_k(correct, 1)


def test_summary_names_each_k_and_its_error():
    got = evaluate.summary(_rows(1, 3, n=4), ks=(1, 4))
    assert got == pytest.approx(
        {"pass@1": 0.5, "pass@1_error": 0.25, "pass@4": 1.0, "pass@4_error": 0.0}
    )


def test_compare_pairs_the_problems_of_first_and_last_stage():
    # Both problems gain 1/4: the paired error is 0, though each stage's own is 25 %.
    # An unpaired error would be sqrt(2) * 25 = 35.4.
    stages = {
        "warm start": evaluate.Stage(_rows(0, 2, n=4), np.array([False, False])),
        "after RL": evaluate.Stage(_rows(1, 3, n=4), np.array([True, False])),
    }
    table = evaluate.compare(stages, ks=(1,))
    assert table.header == ("", "warm start", "after RL", "change")
    assert table.rows == (
        ("pass@1", "25.0 ± 25.0", "50.0 ± 25.0", "+25.0 ± 0.0"),
        ("greedy", "0.0 ± 0.0", "50.0 ± 50.0", "+50.0 ± 50.0"),
    )
    assert "2 problems, 4 samples" in table.note


def test_compare_leaves_greedy_out_when_a_stage_has_none():
    stages = {"only": evaluate.Stage(_rows(1, n=1))}
    table = evaluate.compare(stages, ks=(1,))
    assert table.header == ("", "only")
    assert [row[0] for row in table.rows] == ["pass@1"]


def test_compare_by_group_selects_the_problems_of_each_group():
    stages = {"now": evaluate.Stage(_rows(4, 0, 2, n=4))}
    table = evaluate.compare_by_group(stages, np.array([1, 0, 1]), "carries")
    # Group 1 holds rates 1 and 1/2: mean 75 %, error (1/2)/sqrt(2)/sqrt(2) = 25 %.
    assert table.rows == (("0", "1", "0.0 ± ?"), ("1", "2", "75.0 ± 25.0"))


def test_stages_with_different_problems_are_refused():
    stages = {"a": evaluate.Stage(_rows(1, n=1)), "b": evaluate.Stage(_rows(1, 1, n=1))}
    with pytest.raises(ValueError, match="same problems"):
        evaluate.compare(stages, ks=(1,))
    with pytest.raises(ValueError, match="groups for 2"):
        evaluate.compare_by_group({"a": stages["a"]}, np.array([0, 1]), "carries")


def test_a_table_prints_aligned():
    table = evaluate.Table("title", ("", "a"), (("row", "1"), ("r", "10")), "note")
    assert str(table).splitlines() == ["title", "      a", "row   1", "r    10", "note"]
