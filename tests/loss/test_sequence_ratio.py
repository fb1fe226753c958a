"""Ratios of sequences and turns: loss and coefficient -dl/dlogp of every token.

Numbers follow by hand from d = log(pi / pi_old) of the tokens and s of a row:

    GSPO      -min(s A, clip(s) A), s = exp(mean d)         arXiv:2507.18071
    GMPO      -A exp(mean of d clipped on A's side)         arXiv:2507.20673
    Turn-PPO  PPO's clip of exp(mean d of the turn)         arXiv:2511.20718

Coefficients are those of the token mean times the token count.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from token_case import case, loss_of, per_token

from rljax import advantage as adv
from rljax import loss
from rljax.loss import sequence_ratio

GSPO_D = np.log([[1.1, 0.9, 1.2, 1.0]])


@pytest.mark.parametrize("fn", [loss.gspo(), loss.gspo_token()], ids=["row", "token"])
def test_gspo_in_both_forms(fn):
    good, bad = case(np.ones((1, 4)), GSPO_D), case(-np.ones((1, 4)), GSPO_D)
    value, coefficient = loss_of(good, fn, adv.sequence_mean())
    assert -value == pytest.approx(1.0004, abs=1e-6)
    np.testing.assert_allclose(coefficient, 0)
    value, coefficient = loss_of(bad, fn, adv.sequence_mean())
    assert -value == pytest.approx(-1.044009, abs=1e-6)
    np.testing.assert_allclose(coefficient, [[-1.044009 / 4] * 4], rtol=1e-5)


def test_gspos_forms_differ_only_when_tokens_have_advantages_of_their_own():
    a = np.array([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    d = np.full((2, 4), 1e-4)
    rows = case(a, d)
    row, token = (
        loss_of(rows, fn, adv.sequence_mean())[1]
        for fn in (loss.gspo(), loss.gspo_token())
    )
    np.testing.assert_allclose(row[1], token[1], rtol=1e-6)
    np.testing.assert_allclose(token[0], [np.exp(1e-4) / 8, 0, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(row[0], [np.exp(1e-4) / 32] * 4, rtol=1e-5)


GMPO_D = [[0.5, -0.1, -0.6, 0.2]]


@pytest.mark.parametrize(
    ("sign", "s", "factor"),
    [
        (1.0, 0.97530991, [0, 0.24382748, 0.24382748, 0.24382748]),
        (-1.0, 1.05127110, [0.26281777, 0.26281777, 0, 0.26281777]),
    ],
)
def test_gmpo_clips_each_token_on_one_side(sign, s, factor):
    rows = case(np.full((1, 4), sign), GMPO_D)
    value, coefficient = loss_of(rows, loss.gmpo(), adv.sequence_mean())
    assert -value == pytest.approx(sign * s, rel=1e-6)
    np.testing.assert_allclose(coefficient, [sign * np.array(factor)], rtol=1e-6)


def test_gmpos_ablations():
    rows = case(np.ones((1, 4)), [[0.5, 0.3, 0.6, 0.2]])

    def s(log_ratio_fn):
        return -loss_of(rows, loss.gmpo(log_ratio_fn), adv.sequence_mean())[0]

    assert s(None) == pytest.approx(1.38403065, rel=1e-6)
    assert s(sequence_ratio.clipped_sum(0.4)) == pytest.approx(1.10517092, rel=1e-6)
    assert s(sequence_ratio.mean_unclipped) == pytest.approx(np.exp(0.4), rel=1e-6)
    assert s(sequence_ratio.sum_of_clipped()) == pytest.approx(np.exp(1.3), rel=1e-6)
    narrow = sequence_ratio.sum_of_clipped(low=0.1, high=0.25)
    assert s(narrow) == pytest.approx(np.exp(3 * 0.25 + 0.2), rel=1e-6)
    d = jnp.array([[[-0.5, -0.05]]])
    down = narrow(d, -jnp.ones((1, 1, 1)), jnp.ones((1, 1, 2), bool))
    np.testing.assert_allclose(down, [[[-0.15]]], rtol=1e-6)


def test_gmpo_of_a_row_without_tokens_is_nothing():
    rows = case(np.ones((2, 2)), 0.1, mask=[[1, 1], [0, 0]])
    np.testing.assert_array_equal(per_token(rows, loss.gmpo())[1], 0)


# Two turns, with one token of the environment between them.
TURNS = case(
    [[1, 1, 9, 0.5, 0.5, -1]],
    [[0.1, -0.3, 7, 0.4, 0.2, 0.0]],
    mask=[[1, 1, 0, 1, 1, 1]],
)


OWN = [0, 1, 3, 4, 5]


def own(values):
    return np.asarray(values)[0, OWN]


def test_turn_ppo_shares_one_ratio_per_turn():
    fn = loss.turn_ppo(0.2, 0.2)
    value, coefficient = loss_of(TURNS, fn, adv.sequence_mean())
    assert value == pytest.approx(-0.357654, abs=1e-6)
    np.testing.assert_allclose(
        -own(per_token(TURNS, fn)),
        [0.904837, 0.904837, 0.6, 0.6, -1.221403],
        rtol=1e-5,
    )
    want = [-0.904837, -0.904837, 0.407134, 0.407134, 0.407134]
    np.testing.assert_allclose(-5 * own(coefficient), want, rtol=1e-5)
    w = sequence_ratio.turn_ratio(TURNS.rollout.current, TURNS.rollout)
    clipped = loss.is_clipped(w, TURNS.credit.advantage, 0.2, 0.2)
    assert own(clipped[0]).astype(int).tolist() == [0, 0, 1, 1, 0]


def test_turn_ppo_without_a_clip():
    _, coefficient = loss_of(TURNS, loss.turn_ppo(1.0, 9.0), adv.sequence_mean())
    np.testing.assert_allclose(
        -5 * own(coefficient), [-0.904837, -0.904837, 0, 0, 0], rtol=1e-5, atol=1e-6
    )


def test_token_ppo_on_the_same_turns():
    fn = loss.ppo_clip(0.2, 0.2)
    value, coefficient = loss_of(TURNS, fn, adv.sequence_mean())
    assert value == pytest.approx(-0.409198, abs=1e-6)
    np.testing.assert_allclose(
        -5 * own(coefficient), [-1.105171, -0.740818, 0, 0, 1], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("ratio_fn", "want"),
    [
        # sg[w] A log pi would give -.610701, -.610701, 0 on the second turn.
        (sequence_ratio.turn_ratio, [0, 0, -0.407134, -0.407134, -0.407134]),
        (loss.token_ratio, [0, 0, -0.745912, -0.610701, 0]),
    ],
)
def test_the_clipping_bias_is_what_clipping_took(ratio_fn, want):
    fn = loss.clipping_bias(ratio_fn, 0.2, 0.2)
    _, coefficient = loss_of(TURNS, fn, adv.sequence_mean())
    np.testing.assert_allclose(-5 * own(coefficient), want, rtol=1e-5, atol=1e-6)


def test_turns_are_the_runs_of_the_mask():
    got = sequence_ratio.turns(TURNS.rollout)
    assert own(got[0]).tolist() == [0, 0, 1, 1, 1]
    late = case(np.ones((1, 4)), mask=[[0, 1, 0, 1]])
    assert sequence_ratio.turns(late.rollout)[0, 0, jnp.array([1, 3])].tolist() == [
        0,
        1,
    ]
