"""GAC's closed form, controller and proxies, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixed import (
    DEMONSTRATION,
    TEACHER,
    Row,
    group,
)

from rljax import advantage as adv
from rljax.advantage import gac
from rljax.loss import supervised

# GAC.


def measurement(mismatch, sft_variance, rl_variance):
    return gac.GacMeasurement(*map(jnp.float32, (mismatch, sft_variance, rl_variance)))


def controlled_once(m, **options):
    controller = gac.gac_controller(**options)
    return controller.update(m, controller.init()[1])


def test_the_share_by_hand():
    # mu* = (.5 D + s_r) / (D + s_s + s_r).
    m = measurement(0.6, 0.2, 0.9)
    np.testing.assert_allclose(gac.optimal_share(m), 0.7058824, atol=1e-7)
    value, _ = controlled_once(m)
    np.testing.assert_allclose(value.raw, 0.7058824, atol=1e-7)
    np.testing.assert_allclose(value.mu, 0.5020588, atol=1e-7)
    # A prior of 0.85 wants 0.6760294; one step may change the share by 0.01 only.
    value, _ = controlled_once(m, prior=lambda step: 0.85)
    np.testing.assert_allclose(value.mu, 0.51, atol=1e-7)
    value, _ = controlled_once(m, prior=lambda step: 0.85, max_change=1.0)
    np.testing.assert_allclose(value.mu, 0.6760294, atol=1e-7)


def test_the_limits_of_the_closed_form():
    # Without mismatch inverse-variance weighting, with much of it alpha.
    share = gac.optimal_share(measurement(0, 1, 3))
    np.testing.assert_allclose(share, 0.75, rtol=1e-6)
    share = gac.optimal_share(measurement(1e9, 1, 3), alpha=0.3)
    np.testing.assert_allclose(share, 0.3, rtol=1e-6)


def test_the_share_minimises_the_error_it_is_derived_from():
    alpha, d, s, r = 0.4, 0.7, 0.2, 0.5
    mu = np.linspace(0, 1, 100_001)
    error = (mu - alpha) ** 2 * d + mu**2 * s + (1 - mu) ** 2 * r
    got = gac.optimal_share(measurement(d, s, r), alpha)
    np.testing.assert_allclose(got, mu[np.argmin(error)], atol=2e-5)


def test_measurements_are_taken_in_every_tenth_step():
    controller = gac.gac_controller(keep=0.5, max_change=1.0, low=0.0, high=1.0)
    (_, state), raws = controller.init(), []
    update_ = jax.jit(controller.update)
    for t in range(12):
        value, state = update_(measurement(0.0, 1.0, t), state)
        raws.append(float(value.raw))
    # Step 0: r = 0. Step 10: (0 + 10) / 2 = 5, of it 5 / 6. All others: unread.
    np.testing.assert_allclose(raws, [0.0] * 10 + [5 / 6] * 2, atol=1e-6)
    assert state.last == 10 and state.step == 12


def test_the_mismatch_can_be_capped():
    m = measurement(100.0, 0.2, 0.9)
    free, _ = controlled_once(m)
    capped, _ = controlled_once(m, mismatch_cap=2.0)
    np.testing.assert_allclose(free.raw, 50.9 / 101.1, atol=1e-6)
    np.testing.assert_allclose(capped.raw, (1.1 + 0.9) / 3.3, atol=1e-6)


def gac_batch():
    """Two expert rows and four own ones, constant advantages."""
    rows = [
        Row((0.5, 0.8), source=DEMONSTRATION),
        Row((0.25, 0.25), source=TEACHER),
        Row((0.6, 0.6), 1.0),
        Row((0.9, 0.9), -1.0),
        Row((0.5, 0.5), 1.0),
        Row((0.2, 0.2), -1.0),
    ]
    now, rollout = group(rows)
    return (adv.initial_credit(rollout),), rollout.replace(current=now)


def test_the_proxies_by_hand():
    credits, rollout = gac_batch()
    got = jax.jit(gac.gac_proxies(supervised.uncertainty))(credits, rollout)
    np.testing.assert_allclose(got, (0.6255010, 0.2153651, 1.0), atol=2e-7)
    np.testing.assert_allclose(gac.optimal_share(got), 0.7131157, atol=1e-6)
    # Without phi: c_s = -1 on all rows, (c_s - c_r)^2 is 1 on experts, 0 or 4 on own.
    plain = gac.gac_proxies(supervised.unit)(credits, rollout)
    np.testing.assert_allclose(plain.mismatch, (1 + 1 + 0 + 4 + 0 + 4) / 6, rtol=1e-6)


def test_a_missing_branch_has_no_variance():
    # With a floor of 1e-8 in its place mu* would still be finite, but not 0 or alpha.
    def proxies(*rows):
        now, rollout = group(rows)
        rollout = rollout.replace(current=now)
        measure = jax.jit(gac.gac_proxies(supervised.unit))
        return measure((adv.initial_credit(rollout),), rollout)

    got = proxies(Row((0.6,), 1.0), Row((0.9,), 0.0))
    assert got.sft_variance == 0 and got.rl_variance == 0.25
    got = proxies(Row((0.6,), 1.0, DEMONSTRATION))
    assert got.rl_variance == 0
    np.testing.assert_allclose(got.sft_variance, 1e-8)


def test_the_variance_is_trimmed_on_both_sides():
    # Of 1..9, 100 the 1 and the 100 go.
    values = jnp.asarray([5.0, 1, 2, 100, 3, 4, 9, 8, 7, 6])
    mask = jnp.ones(10, bool)
    np.testing.assert_allclose(gac.trimmed_variance(values, mask, 0.1), 5.25, rtol=1e-6)
    np.testing.assert_allclose(
        gac.trimmed_variance(values, mask, 0.0), np.var(values), rtol=1e-6
    )
    few = gac.trimmed_variance(values, jnp.arange(10) < 3, 0.4)
    np.testing.assert_allclose(few, np.var([5, 1, 2]), rtol=1e-6)


def test_z_scores_make_the_mismatch_scale_free():
    # Rewards ten times as large leave z-scores where they are, and raw ones not.
    credits, rollout = gac_batch()
    large = (credits[0].replace(advantage=10 * credits[0].advantage),)
    for scale_fn, same in ((gac.z_scores, True), (gac.as_they_are, False)):
        measure = gac.gac_proxies(supervised.uncertainty, scale_fn=scale_fn)
        a, b = measure(credits, rollout), measure(large, rollout)
        assert bool(jnp.isclose(a.mismatch, b.mismatch, rtol=1e-4)) is same


@pytest.mark.parametrize(
    "make",
    [
        lambda: gac.gac_controller(alpha=1.5),
        lambda: gac.gac_controller(initial=0.95),
        lambda: gac.gac_controller(every=0),
        lambda: gac.gac_proxies(supervised.unit, trim=0.5),
        lambda: adv.constant_sum(0),
    ],
)
def test_numbers_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must lie|need"):
        make()
