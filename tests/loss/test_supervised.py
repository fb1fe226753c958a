"""Supervised objectives: the coefficient map and the printed numbers of the papers."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixed import PROBS, Row, demonstration, group, per_token, step

from rljax import algorithms
from rljax.loss import nll, ppo_clip, reinforce, supervised

P = np.array([0.01, 0.1, 0.3, 0.5, 0.6, 0.9])


OLD = np.array([0.02, 0.1, 0.2, 0.4, 0.9, 0.8])


TAU, GAMMA = 0.35, 0.1


RATIO = P / OLD


WEIGHT = min(np.exp(np.mean(np.log(P / OLD))), 16)


# name: (loss function, advantage, coefficient by the formula)
COEFFICIENTS = {
    "SFT": (nll(), 1.0, np.ones(6)),
    "SFT ignores the advantage": (nll(), -2.0, np.ones(6)),
    "SFT as a weight": (
        supervised.reweighted(nll(), supervised.unit),
        1.0,
        np.ones(6),
    ),
    "DFT": (supervised.reweighted(nll(), supervised.probability), 1.0, P),
    "CHORD-phi": (supervised.reweighted(nll(), supervised.uncertainty), 1.0, P - P**2),
    "GFT": (
        supervised.reweighted(reinforce(), supervised.threshold(TAU)),
        1.5,
        1.5 * np.where(P > TAU, 1, P),
    ),
    "GFT, negative advantage": (
        supervised.reweighted(reinforce(), supervised.threshold(TAU)),
        -0.7,
        -0.7 * np.where(P > TAU, 1, P),
    ),
    "LUFFY": (
        supervised.shaped_probability(GAMMA),
        1.5,
        1.5 * GAMMA * P / (P + GAMMA) ** 2,
    ),
    "PSFT": (ppo_clip(0.2, 0.28), 1.0, np.where(RATIO > 1.28, 0, RATIO)),
    "iw-SFT": (
        supervised.reweighted(nll(), supervised.sequence_importance()),
        1.0,
        np.full(6, WEIGHT),
    ),
    "iw-SFT per token": (
        supervised.reweighted(nll(), supervised.token_importance()),
        1.0,
        np.clip(RATIO, 0.2, 1.8),
    ),
    "SRFT on demonstrations": (
        supervised.with_behaviour_prob_one(ppo_clip(0.2, 0.2)),
        1.0,
        P,
    ),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_the_coefficient_of_a_token_is_the_papers(name, strict):
    # -dl/dlogp. Without stop-gradient DFT would have p (1 + log p), GFT a negative
    # weight at small p; a detached LUFFY fraction would have p / (p + gamma).
    loss_fn, advantage, want = COEFFICIENTS[name]
    now, rollout = group([Row(tuple(P), old=tuple(OLD), reference=tuple(OLD))])
    credit = fakes.credit_of(rollout, advantage)
    grads = jax.grad(lambda now: jnp.sum(loss_fn(now, credit, rollout)))(now)
    np.testing.assert_allclose(-grads.logp[0, 0], want, rtol=2e-6)
    np.testing.assert_array_equal(grads.entropy, 0)


def test_dft_by_hand():
    # p log p per token, mean 0.1766916; SFT's mean is 1.2783540. With the
    # weight inside the divisor DFT would be 0.1766916 * 3 / 1.54.
    now, rollout = group([demonstration()])
    loss_fn = supervised.reweighted(nll(), supervised.probability)
    np.testing.assert_allclose(
        per_token(loss_fn, now, rollout)[0, 0],
        [0.0948245, 0.1287550, 0.3064954],
        atol=1e-7,
    )
    loss, coefficient, _, _ = step(algorithms.dft(), now, rollout)
    np.testing.assert_allclose(loss, 0.1766916, atol=1e-7)
    np.testing.assert_allclose(coefficient[0, 0], np.array(PROBS) / 3, rtol=1e-6)
    np.testing.assert_allclose(
        step(algorithms.sft(), now, rollout)[0], 1.2783540, atol=1e-7
    )


def test_iw_sft_bounds_its_weight():
    now, rollout = group([demonstration((0.9,), reference=(0.01,))])
    weight = supervised.sequence_importance()(now, None, rollout)
    np.testing.assert_allclose(weight[0, 0, 0], 16)
    square = supervised.sequence_importance(exponent=2.0, high=1e5)
    np.testing.assert_allclose(square(now, None, rollout)[0, 0, 0], 90**2, rtol=1e-5)
    loss = step(algorithms.iw_sft(supervised.token_importance()), now, rollout)[0]
    np.testing.assert_allclose(loss, -1.8 * np.log(0.9), rtol=1e-6)


def test_chord_phi_by_hand():
    # p (1 - p) (-log p) per token.
    now, rollout = group([demonstration((0.25, 0.5, 0.9))])
    loss_fn = supervised.reweighted(nll(), supervised.uncertainty)
    np.testing.assert_allclose(
        per_token(loss_fn, now, rollout)[0, 0],
        [0.2599302, 0.1732868, 0.0094824],
        atol=1e-7,
    )


def test_luffys_shaping_by_hand():
    # Fraction p / (p + .1) and coefficient .1 p / (p + .1)^2, largest at p = gamma.
    now, rollout = group([demonstration((0.01, 0.1, 0.5, 0.9))])
    loss_fn = supervised.shaped_probability(0.1)
    np.testing.assert_allclose(
        -per_token(loss_fn, now, rollout)[0, 0],
        [0.0909091, 0.5, 0.8333333, 0.9],
        atol=1e-7,
    )
    grads = jax.grad(lambda n: jnp.sum(per_token(loss_fn, n, rollout)))(now)
    np.testing.assert_allclose(
        -grads.logp[0, 0], [0.0826446, 0.25, 0.1388889, 0.09], atol=1e-7
    )


def test_srfts_weights_by_hand():
    # 0.5 e^-H and 0.1 e^H at H = 0.5, the row's mean entropy; they carry no gradient.
    now, rollout = group([Row((0.5, 0.5), entropy=0.5)])
    for coefficient, exponent, want in ((0.5, -1, 0.3032653), (0.1, 1, 0.1648721)):
        weight_fn = supervised.entropy_weight(coefficient, exponent)
        weight = weight_fn(now, None, rollout)
        np.testing.assert_allclose(weight[0, 0, 0], want, atol=1e-7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: supervised.threshold(-0.1),
        lambda: supervised.shaped_probability(0.0),
        lambda: supervised.sequence_importance(high=0),
        lambda: supervised.token_importance(2.0, 1.0),
    ],
)
def test_numbers_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must lie|need"):
        make()


def test_a_population_of_thresholds_is_a_vmap():
    # Factories that branch on the number in Python would raise on a tracer.
    now, rollout = group([Row((0.9, 0.04)), Row((0.6, 0.3), reward=0.0)])
    losses = jax.vmap(lambda tau: step(algorithms.gft(tau=tau), now, rollout)[0])(
        jnp.array([0.1, 0.5])
    )
    want = [step(algorithms.gft(tau=tau), now, rollout)[0] for tau in (0.1, 0.5)]
    np.testing.assert_allclose(losses, want, rtol=1e-6)
    gammas = jax.vmap(
        lambda g: per_token(supervised.shaped_probability(g), now, rollout)
    )(jnp.array([0.1, 0.2]))
    assert gammas.shape[0] == 2
