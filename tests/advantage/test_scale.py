"""Scales by group, solve rate, batch and history, by hand and by peers' numbers."""

import functools
import math

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from rewarded import advantage, apply, equal

from rljax import advantage as adv
from rljax import algorithms as al
from rljax.advantage import chain
from rljax.analysis import profile

pytestmark = pytest.mark.usefixtures("strict")


# MaxRL as peers' tests have it.


@pytest.mark.parametrize(
    ("rewards", "want"),
    [
        # prime-rl tests/unit/orchestrator/test_advantage.py: no epsilon.
        ([1, 0, 0, 0], [3, -1, -1, -1]),
        ([0, 0], [0, 0]),
        ([1, 1], [0, 0]),
        # SkyRL test_ppo_utils.py: rewards above 1, mean + 1e-6 in the divisor.
        ([6, 3], [1 / 3, -1 / 3]),
        ([9, 12], [-1.5 / 10.5, 1.5 / 10.5]),
    ],
)
def test_maxrl_as_peers_have_it(rewards, want):
    maxrl = chain(adv.center_by_group(), adv.scale_by_rate(lambda p: 1 / p))
    equal(advantage(maxrl, rewards), want)


@pytest.mark.parametrize("order", [0.5, 1.0, 3.0, math.inf])
def test_the_group_norm_is_the_norm_of_the_deviations(order):
    r = np.array([0.0, 0.2, 0.9, 1.0])
    d = r - r.mean()
    norm = (
        np.abs(d).max()
        if order == math.inf
        else (abs(d) ** order).mean() ** (1 / order)
    )
    method = chain(adv.center_by_group(), adv.scale_by_group_norm(order))
    equal(advantage(method, r), d / norm, atol=1e-5)


def test_rewards_outside_the_unit_interval_are_counted():
    # p of rewards +-1 is no solve rate: the run must stop, not train on 1 / p < 0.
    rate = adv.scale_by_rate(lambda p: 1 / p)
    for rewards, count in (([1, -1, 0.5], 1), ([1, 0, 0.5], 0), ([math.nan, 2, 1], 2)):
        rows = fakes.rewards([0, 0, 0])
        reward = jnp.asarray([rewards], jnp.float32)
        rows = rows.replace(verdict=rows.verdict.replace(reward=reward))
        credit, _ = apply(rate, rows)
        assert credit.metrics["fault/reward_out_of_range"].value == count


def test_the_focal_factor_of_a_solved_group_is_one_only_for_exponent_zero():
    # 0^0 = 1 keeps alpha = 1 equal to Dr. GRPO; NaN would poison the batch.
    p = jnp.array([1.0, 1.0, 0.0])
    got = adv.scale.focal_factor(p, jnp.array([0.0, 2.0, 2.0]))
    chex.assert_trees_all_equal(got, jnp.array([1.0, 0.0, 1.0]))


def test_focal_reads_the_reward_and_not_the_shaped_advantage():
    # p = 1/4 though the advantages were shifted before: (3/4)^1 (1 + 9).
    shift = adv.stateless(lambda c, r: c.replace(advantage=c.advantage + 9))
    got = advantage(chain(shift, adv.scale_by_focal_factor(1.0)), [1, 0, 0, 0])
    equal(got, [7.5, 6.75, 6.75, 6.75])


GROUP_MEAN = adv.center_by_group()


# GPG, arXiv:2504.02546: A = (r - mean r) groups / mixed groups.


def test_gpg_means_over_the_mixed_groups_alone():
    # 4 groups, 2 of them mixed: alpha 2. verl's `gpg` counts responses of nonzero
    # score and gets 16/7: 1.714286, -.571429, +-1.142857.
    groups = [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]
    method = chain(GROUP_MEAN, adv.scale_by_mixed_share())
    credit, _ = apply(method, fakes.rewards(*groups))
    want = [[1.5, -0.5, -0.5, -0.5], [0] * 4, [0] * 4, [1, 1, -1, -1]]
    np.testing.assert_allclose(credit.advantage[..., 0], want, atol=1e-6)
    assert credit.metrics["mixed_share"] == 0.5


def test_gpg_without_a_mixed_group_is_zero():
    method = chain(GROUP_MEAN, adv.scale_by_mixed_share())
    chex.assert_trees_all_equal(advantage(method, [1, 1], [0, 0]), jnp.zeros((2, 2)))


# A-GRAE: GRPO's A times h, h = ((1 - B) / (1 - sqrt p) + B / sqrt p) / 2, and
# successes times min(1, B / k0); here B = .4, k0 = 1.


@pytest.mark.parametrize(
    ("count", "company", "want"),
    [
        (2, (6, 4, 4, 0), (0.692820, -0.577350, 0.173205, 0.433013)),
        (6, (4, 4, 2, 0), (0.570461, -4.278461, 0.427846, 1.069615)),
    ],
)
def test_a_grae_golden_values(count, company, want):
    # The golden values have the population deviation, the authors' code ddof 1.
    method = profile.advantage_of(al.a_grae(ddof=0))
    got = profile.analytic(method, 8, company=company)
    np.testing.assert_allclose([x[count] for x in got], want, atol=1e-5)
    code = profile.analytic(profile.advantage_of(al.a_grae()), 8, company=company)
    np.testing.assert_allclose(code.A_S[count], want[0] * np.sqrt(7 / 8), atol=1e-5)
    # k0 = .5 suppresses successes half as much.
    soft = profile.advantage_of(al.a_grae(ddof=0, k0=0.5))
    got = profile.analytic(soft, 8, company=company)
    np.testing.assert_allclose(got.A_S[count], 2 * want[0], atol=1e-5)


# CurveRL: w = f(p) / F(p); G = 4, 5 bins, window p = {.25, .25, .5, .75}, so f is 2, 1,
# 1 and F 2, 3, 4 in their bins: w = 1, 1/3, 1/4.


def curve(num_samples=4, **numbers):
    return chain(GROUP_MEAN, adv.scale_by_history(num_samples, **numbers))


def step(transform, state, *counts, num_samples=4):
    credit, state = update(transform, state, fakes.solved(num_samples, *counts))
    return credit.advantage[..., 0], state


@functools.partial(jax.jit, static_argnums=0)
def update(transform, state, rows):
    return transform.update(adv.initial_credit(rows), rows, state)


WINDOW = (1, 1, 2, 3)


WEIGHED = {1: (0.75, -0.25), 2: (0.16666667, -0.16666667), 3: (0.0625, -0.1875)}


def test_curve_rl_example():
    # The second batch is weighed by the first one, whose mass is [0, .5, .25, .25, 0].
    transform = curve()
    _, state = step(transform, laws.init(transform), *WINDOW, 0, 4)
    got, _ = step(transform, state, 1, 2, 3, 0, 4)
    for row, count in zip(got, (1, 2, 3), strict=False):
        np.testing.assert_allclose(row[jnp.array([0, 3])], WEIGHED[count], atol=1e-6)
    chex.assert_trees_all_equal(got[3:], jnp.zeros((2, 4)))


def test_curve_rl_weighs_the_first_batch_by_itself():
    transform = curve()
    got, state = step(transform, laws.init(transform), *WINDOW)
    np.testing.assert_allclose(got[0, 0], 0.75, atol=1e-6)
    np.testing.assert_allclose(got[3, 0], 0.0625, atol=1e-6)
    np.testing.assert_array_equal(state[1].counts[0], [0, 2, 1, 1, 0])


def test_curve_rl_gives_a_rate_that_it_has_not_seen_no_weight():
    transform = curve()
    _, state = step(transform, laws.init(transform), 1, 1)
    got, state = step(transform, state, 3, 1)
    chex.assert_trees_all_equal(got[0], jnp.zeros(4))
    np.testing.assert_allclose(got[1, 0], 0.75, atol=1e-6)
    # But it enters the history for the batch after: 1 of 4 at 3/4, cdf 1.
    got, _ = step(transform, state, 3, 1)
    np.testing.assert_allclose(got[0, 0], 0.25 * 0.25, atol=1e-6)


def test_curve_rl_forgets_the_oldest_batch():
    transform = curve(window=2)
    state = laws.init(transform)
    for counts in ((1, 1), (2, 2), (2, 2)):
        _, state = step(transform, state, *counts)
    # The 1/4 of the first batch is gone: weight 0, and 1/2 is all there is, weight 1.
    got, _ = step(transform, state, 1, 2)
    np.testing.assert_allclose(got[:, 0], [0, 0.5], atol=1e-6)


def test_curve_rl_runs_in_a_scan_and_counts_batches():
    transform = curve()
    rows = fakes.solved(4, 1, 2, 3)

    def one(state, _):
        credit, state = transform.update(adv.initial_credit(rows), rows, state)
        return state, credit.advantage

    state, _ = jax.lax.scan(one, laws.init(transform), length=12)
    assert state[1].step == 12
    np.testing.assert_array_equal(state[1].counts.sum(0), [0, 10, 10, 10, 0])


def test_curve_rl_needs_the_number_of_samples():
    with pytest.raises(ValueError, match=r"needs num_samples = G"):
        step(curve(num_samples=8), laws.init(curve(num_samples=8)), 1)
    with pytest.raises(ValueError, match="num_samples must lie in"):
        adv.scale_by_history(1)
    with pytest.raises(ValueError, match="window must lie in"):
        adv.scale_by_history(4, window=0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: adv.assign_return_to_go(1.5), "discount"),
        (lambda: adv.whiten_by_batch(floor=0.0), "floor"),
        (lambda: adv.anneal_by_batch_rate(0.0), "k0"),
    ],
)
def test_numbers_out_of_range_are_named(make, name):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        make()
