"""Gradient masses: hand-computed, published, and of realised coefficients."""

import chex
import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest
import scipy.stats

from rljax import advantage as adv
from rljax.advantage import chain, mass

pytestmark = pytest.mark.usefixtures("strict")

ALL = jnp.ones((1, 2), bool)


def rows(*counts_and_advantages):
    """[P, 8]: per group (successes, A_S, A_F)."""
    return jnp.array([[s] * c + [f] * (8 - c) for c, s, f in counts_and_advantages])


# FADE's advantages of the examples E2, E3 and E5 in test_fade.py. A group's masses are
# m_S = p A_S and m_F = -q A_F; the batch's are their means, Kish's number (sum w)^2 /
# sum w^2 of w = m_S + m_F.
E2 = rows((2, 0.64246191, -0.21415397), (1, 0.81434766, -0.11633538))
E3 = rows((2, 0.421875, -0.23515886), (1, 0.66992188, -0.16003867))
E5 = rows((8, 0.0, 0.0), (0, 0.0, 0.0), (4, 0.5, -1.66666667))
RATES = jnp.array([0.25, 0.125])


def summary(advantage, p):
    return mass.summary(*mass.masses(advantage, jnp.ones(advantage.shape, bool)), p)


def close(got, want, rtol=2e-6):
    chex.assert_trees_all_close({k: got[k] for k in want}, want, rtol=rtol, atol=1e-6)


def test_masses_of_groups():
    m_S, m_F = mass.masses(E3, jnp.ones((2, 8), bool))
    want = jnp.array([[0.10546875, 0.08374023], [0.17636915, 0.14003384]])
    chex.assert_trees_all_close(jnp.stack([m_S, m_F]), want, rtol=1e-6)


def test_batch_masses_of_e2_and_e3():
    want = {
        "positive": 0.13120447,
        "negative": 0.13120447,
        "log_ratio": 0.0,
        "difficulty": 0.20151010,
        "effective_groups": 1.90431132,
        "zero_share": 0.0,
    }
    close(summary(E2, RATES), want)
    want |= {
        "positive": 0.09460449,
        "negative": 0.15820149,
        "log_ratio": -0.51416457,
        "difficulty": 0.19467742,
        "effective_groups": 1.97396745,
    }
    close(summary(E3, RATES), want)


def test_groups_without_variance_weigh_nothing():
    got = summary(E5, jnp.array([1.0, 0.0, 0.5]))
    close(got, {"effective_groups": 1.0, "zero_share": 2 / 3, "difficulty": 0.5})
    got = summary(E5[:2], jnp.array([1.0, 0.0]))
    close(got, {"effective_groups": 0.0, "zero_share": 1.0, "log_ratio": 0.0})


def test_lengths_weigh_rows_as_a_token_mean_does():
    # Equal weights would give .25 and .25.
    m_S, m_F = mass.masses(jnp.array([[0.5, -0.5]]), ALL, jnp.array([[10, 30]]))
    assert (float(m_S[0]), float(m_F[0])) == pytest.approx((0.125, 0.375))


def test_rows_that_do_not_count_take_no_share():
    valid = jnp.array([[True, True, False]])
    m_S, m_F = mass.masses(jnp.array([[1.0, -1.0, 7.0]]), valid)
    assert (float(m_S[0]), float(m_F[0])) == (0.5, 0.5)
    chex.assert_trees_all_equal(
        mass.masses(jnp.ones((1, 3)), valid & ~valid)[0][0], 0.0
    )


def test_coefficients_of_a_sequence_mean_carry_the_masses_of_the_advantages():
    # One token per row and shares 1 / (P G): the same numbers as from advantages.
    coefficient = (E3 / 16)[..., None]
    close(mass.of_coefficients(coefficient, RATES), summary(E3, RATES))


def test_a_token_mean_moves_mass_to_long_rows():
    # A = (+.5 on 1 token, -.5 on 3): sums over tokens of A / 4.
    coefficient = jnp.array([[[0.5, 0, 0], [-0.5, -0.5, -0.5]]]) / 4
    got = mass.of_coefficients(coefficient, jnp.array([0.5]))
    close(got, {"positive": 0.125, "negative": 0.375, "log_ratio": np.log(1 / 3)})


# Expected masses under c ~ Bin(8, 1/4): sums over c of chance times mass. For Dr. GRPO
# E[m] = 7/8 p q. Given are
# m_S, and the slope f'(p) = m_S / p + m_F / q of the objective really optimised.

CENTRED = adv.center_by_group()
EXPECTED = {
    "dr_grpo": (CENTRED, 0.1640625, 7 / 8),
    "rloo": (adv.center_by_leave_one_out(), 0.1875, 1.0),
    "grpo": (chain(CENTRED, adv.scale_by_group_std()), 0.37989667, 2.026116),
    "power_2": (
        chain(CENTRED, adv.scale_by_focal_factor(1.0)),
        0.11279297,
        0.11279297 * 16 / 3,
    ),
    "asym_grpo": (
        chain(CENTRED, adv.scale_negative(2.0)),
        0.1640625,
        7 / 8 * (0.75 + 0.25 * 2),
    ),
}


@pytest.mark.parametrize(
    ("transform", "want", "slope"), EXPECTED.values(), ids=EXPECTED
)
def test_expected_masses(transform, want, slope):
    credit, _ = laws.apply(transform, fakes.solved(8, *range(9)))
    m_S, m_F = mass.masses(credit.advantage[..., 0], credit.member[..., 0])
    chance = jnp.asarray(scipy.stats.binom.pmf(range(9), 8, 0.25), jnp.float32)
    m_S, m_F = float(jnp.sum(chance * m_S)), float(jnp.sum(chance * m_F))
    assert m_S == pytest.approx(want, rel=1e-5)
    assert m_S / 0.25 + m_F / 0.75 == pytest.approx(slope, rel=1e-5)
