"""Overlong punishment, dynamic sampling, ACE and DASD on published numbers.

Numbers without another source follow from the formulas by hand:

    DAPO  -1 beyond max, ((max - buffer) - length) / buffer on the slope   2503.14476
    ACE   A (1 + alpha softplus(c)) where A < 0                            2602.21420
    DASD  A + beta tanh((tau - H) / sigma) sigmoid(|d| - 1) d              2605.22263
"""

import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from token_case import case, weigh

from rljax import advantage as adv
from rljax.advantage import shaping


def penalty(lengths, max_tokens, buffer):
    rows = fakes.rollout(1, len(lengths), 1, reward=np.zeros((1, len(lengths))))
    mask = jnp.arange(max_tokens + 20) < jnp.asarray(lengths)[:, None]
    rows = rows.replace(samples=rows.samples.replace(mask=mask[None]))
    fn = adv.punish_overlong(max_tokens=max_tokens, buffer=buffer)
    return np.asarray(laws.apply(fn, rows)[0].advantage[0, :, 0])


def test_dapos_overlong_punishment():
    got = penalty([16000, 18432, 20480, 20481], 20480, 4096)
    np.testing.assert_allclose(got, [0, -0.5, -1, -1])


def test_trls_overlong_punishment():
    # trl tests/test_rewards.py: max 100, cache 20.
    np.testing.assert_allclose(penalty([50, 90, 110], 100, 20), [0, -0.5, -1])


def test_tunix_punishes_without_a_floor():
    # tunix tests/rl/grpo/dapo_learner_test.py: penalty 10, counted in characters, and
    # -15 at 110 where DAPO stops at -10. Everything up to the maximum agrees.
    got = 10 * penalty([70, 80, 90, 100, 110], 100, 20)
    np.testing.assert_allclose(got, [0, 0, -5, -10, -10])


def test_the_buffer_cannot_be_longer_than_the_completion():
    with pytest.raises(ValueError, match="buffer"):
        adv.punish_overlong(max_tokens=10, buffer=11)


@pytest.mark.parametrize(
    ("alpha", "want"),
    [
        (1.0, [-1.126928, -1.693147, -3.126928]),
        (0.5, [-1.063464, -1.346574, -2.063464]),
    ],
)
def test_ace_punishes_confident_errors_more(alpha, want):
    # c = -2, 0, 2 from two tokens each; A > 0 stays what it is.
    rows = case([[-1] * 2] * 3 + [[1] * 2])
    c = jnp.asarray([-2, 0, 2, 2], jnp.float32)[None, :, None]
    reference = rows.rollout.old.replace(logp=rows.rollout.old.logp - c / 2)
    rows = rows._replace(rollout=rows.rollout.replace(reference=reference))
    got = weigh(rows, adv.punish_confident_errors(alpha)).advantage[0, :, 0]
    np.testing.assert_allclose(got, [*want, 1], rtol=1e-5)
    averaged = weigh(rows, adv.punish_confident_errors(alpha, shaping.averaged))
    half = -1 - alpha * np.log1p(np.exp(np.array([-1, 0, 1])))
    np.testing.assert_allclose(averaged.advantage[0, :3, 0], half, rtol=1e-5)


def test_aces_residual_weights_are_the_slope_of_its_multiplier():
    # d softplus = sigmoid: what Theorem 1's decomposition rests on.
    slope = jax.vmap(jax.grad(jax.nn.softplus))(jnp.array([-2.0, 0.0, 2.0]))
    np.testing.assert_allclose(slope, [0.119203, 0.5, 0.880797], rtol=1e-5)


H = [0.05, 0.1, 0.2, 0.4, 1.2, 2.0]


D = [0.5, -0.2, 1, -1.5, 2, -0.3]


ATTRACTED = [1.020120, 0.993550, 1.052495, 0.908512, 1, 1.009454]


def dasd(gap, entropy=H, mask=None, **numbers):
    rows = case([[1] * len(gap)], entropy=[entropy], mask=mask)
    old = rows.rollout.old
    teacher = old.replace(logp=old.logp + jnp.asarray(gap, jnp.float32))
    rows = rows._replace(rollout=rows.rollout.replace(teacher=teacher))
    return weigh(rows, adv.follow_teacher_by_entropy(**numbers)).advantage[0, 0]


def test_dasd_is_drawn_to_the_teacher_where_it_is_certain():
    np.testing.assert_allclose(dasd(D), ATTRACTED, rtol=2e-6)


def test_dasds_parts():
    d = np.array(D) / np.mean(np.abs(D))
    np.testing.assert_allclose(
        d, [0.545455, -0.218182, 1.090909, -1.636364, 2.181818, -0.327273], atol=1e-6
    )
    got = (np.asarray(dasd(D, beta=1.0)) - 1) / d
    omega = [0.368869, 0.295603, 0.481206, 0.559090, 0, -0.288882]
    np.testing.assert_allclose(got, omega, atol=2e-6)


def test_dasds_other_reading_repels_most_tokens():
    omega = (np.asarray(dasd(D, beta=1.0, entropy_quantile=0.2)) - 1) / np.array(D)
    assert np.sum(omega < 0) == 4  # the threshold is .1 itself, the second token's H


def test_dasds_statistics_are_those_of_the_masked_row():
    # A seventh token outside the mask with another entropy and gap changes nothing.
    mask = [[1, 1, 1, 1, 1, 1, 0]]
    got = dasd([*D, 9.0], [*H, 5.0], mask)
    np.testing.assert_allclose(got[:6], ATTRACTED, rtol=2e-6)


@pytest.mark.parametrize(("gap", "entropy"), [([0.0] * 6, H), (D, [0.5] * 6)])
def test_dasd_of_no_gap_or_even_entropies_is_the_advantage(gap, entropy):
    # Both divisors are 0 there.
    np.testing.assert_allclose(dasd(gap, entropy), np.ones(6))
