"""Static advantages against ../shared/papers/01-fade.md: golden values, by hand, peers.

The golden tables run the recipes themselves through `profile.analytic`.
"""

import functools
import math

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import algorithms as al
from rljax import metric
from rljax.advantage import chain, fade
from rljax.analysis import profile
from rljax.types import Source

pytestmark = pytest.mark.usefixtures("strict")

apply = jax.jit(laws.apply, static_argnums=0)  # op by op, compiling takes minutes

# Every recipe of paper 01 that is a function of the group alone.
RECIPES = {
    "reinforce": al.reinforce(),
    "reinforce_baseline": al.reinforce(baseline=0.3),
    "reinforce_signed": al.reinforce_signed(),
    "psr": al.psr(),
    "nsr": al.nsr(),
    "w_reinforce": al.w_reinforce(),
    "raft": al.raft(),
    "dr_grpo": al.dr_grpo(8),
    "rloo": al.rloo(),
    "opo": al.opo(),
    "grpo": al.grpo(),
    "grpo_ddof_1": al.grpo(ddof=1),
    "l1": al.norm_grpo(1.0),
    "l2": al.norm_grpo(2.0),
    "l_inf": al.norm_grpo(math.inf),
    "maxrl": al.maxrl(),
    "linear_r": al.linear_r(),
    "sqrt_r": al.sqrt_r(),
    "log_failure": al.log_failure(),
    "log_odds": al.log_odds(),
    "power_1": al.power(1.0),
    "power_2": al.power(2.0),
    "power_3_peak": al.power(3.0, scale_fn=fade.peak_scale),
    "pass_at_4": al.pass_at_k(4),
    "f_grpo": al.f_grpo(0.5),
    "f_grpo_on_mean": al.f_grpo(1.0, base=adv.center_by_group()),
    "rs_grpo": al.rs_grpo(),
    "asym_grpo": al.asym_grpo(0.5),
    "gu": al.asym_grpo_by_odds(),
    "gu_half": al.asym_grpo_by_odds(success=0.5, failure=0.5),
    "gu_zero": al.asym_grpo_by_odds(success=0.0, failure=0.0),
    "power_asym": al.power_asym(2.0, 2.0),
    "power_asym_1": al.power_asym(1.0, 1.0),
    "qae": al.qae(),
    "qae_plain": al.qae(scale=chain()),
    "pkpo": al.pkpo(4),
    "pkpo_minus_one": al.pkpo_minus_one(4),
    "pkpo_leave_one_out": al.pkpo_leave_one_out(4),
    "pass_at_k_training": al.pass_at_k_training(4),
    "pass_at_group": al.pass_at_group(),
}

# Both classes get the same mass in every group.
BALANCED = [
    "dr_grpo",
    "rloo",
    "opo",
    "grpo",
    "grpo_ddof_1",
    "l1",
    "l2",
    "l_inf",
    "maxrl",
    "sqrt_r",
    "log_failure",
    "log_odds",
    "power_1",
    "power_2",
    "power_3_peak",
    "pass_at_4",
    "f_grpo",
    "f_grpo_on_mean",
    "rs_grpo",
    "gu_half",
    "power_asym_1",
    "pkpo_leave_one_out",
    "pass_at_k_training",
]


@functools.cache
def table(name, num_samples=8):
    return profile.analytic(profile.advantage_of(RECIPES[name]), num_samples)


def row(name, count, num_samples=8):
    return [float(column[count]) for column in table(name, num_samples)]


def advantage(transform, *groups):
    """f32[P, G] from one list of rewards per prompt."""
    return apply(transform, fakes.rewards(*groups))[0].advantage[..., 0]


def equal(got, *groups, atol=2e-6):
    chex.assert_trees_all_close(got, jnp.asarray(groups, jnp.float32), atol=atol)


GOLDEN = {  # sections 3 and 6.4, G = 8: (A_S, A_F, m_S, m_F) at c = 2 and at c = 6
    "reinforce": ((1, 0, 0.25, 0), (1, 0, 0.75, 0)),
    "psr": ((1, 0, 0.25, 0), (1, 0, 0.75, 0)),
    "reinforce_baseline": ((0.7, -0.3, 0.175, 0.225), (0.7, -0.3, 0.525, 0.075)),
    "reinforce_signed": ((1, -1, 0.25, 0.75), (1, -1, 0.75, 0.25)),
    "nsr": ((0, -1, 0, 0.75), (0, -1, 0, 0.25)),
    "w_reinforce": ((0.1, -1, 0.025, 0.75), (0.1, -1, 0.075, 0.25)),
    "dr_grpo": ((0.75, -0.25, 0.1875, 0.1875), (0.25, -0.75, 0.1875, 0.1875)),
    "opo": ((0.75, -0.25, 0.1875, 0.1875), (0.25, -0.75, 0.1875, 0.1875)),
    "rloo": (
        (0.857143, -0.285714, 0.214286, 0.214286),
        (0.285714, -0.857143, 0.214286, 0.214286),
    ),
    "grpo": (
        (1.732051, -0.577350, 0.433013, 0.433013),
        (0.577350, -1.732051, 0.433013, 0.433013),
    ),
    "grpo_ddof_1": (
        (1.620185, -0.540062, 0.405046, 0.405046),
        (0.540062, -1.620185, 0.405046, 0.405046),
    ),
    "maxrl": ((3, -1, 0.75, 0.75), (0.333333, -1, 0.25, 0.25)),
    "sqrt_r": ((1.5, -0.5, 0.375, 0.375), (0.288675, -0.866025, 0.216506, 0.216506)),
    "log_failure": ((1, -0.333333, 0.25, 0.25), (1, -3, 0.75, 0.75)),
    "log_odds": ((4, -1.333333, 1, 1), (1.333333, -4, 1, 1)),
    "power_2": (
        (0.5625, -0.1875, 0.140625, 0.140625),
        (0.0625, -0.1875, 0.046875, 0.046875),
    ),
    "f_grpo": ((1.5, -0.5, 0.375, 0.375), (0.288675, -0.866025, 0.216506, 0.216506)),
    "asym_grpo": ((0.75, -0.5, 0.1875, 0.375), (0.25, -1.5, 0.1875, 0.375)),
    "gu": (
        (2.687875, -0.644394, 0.671969, 0.483296),
        (0.372041, -1.551846, 0.279031, 0.387961),
    ),
    "rs_grpo": (
        (0.922469, -0.307490, 0.230617, 0.230617),
        (0.137890, -0.413671, 0.103418, 0.103418),
    ),
    "pass_at_4": (
        (1.265625, -0.421875, 0.316406, 0.316406),
        (0.015625, -0.046875, 0.011719, 0.011719),
    ),
    "pass_at_k_training": ((0.522233, -0.174078, 0.130558, 0.130558), (0, 0, 0, 0)),
    "pkpo": ((4, 2.857143, 1, -2.142857), (4, 4, 3, -1)),
    "pkpo_minus_one": ((2.285714, 0, 0.571429, 0), (0, 0, 0, 0)),
    "l1": ((2, -2 / 3, 0.5, 0.5), (2 / 3, -2, 0.5, 0.5)),
    "l_inf": ((1, -1 / 3, 0.25, 0.25), (1 / 3, -1, 0.25, 0.25)),
    "raft": ((4, 0, 1, 0), (4 / 3, 0, 1, 0)),
    "linear_r": ((3, -1, 0.75, 0.75), (1 / 3, -1, 0.25, 0.25)),
    "power_asym": (
        (0.5625, -0.0625, 0.140625, 0.046875),
        (0.0625, -0.5625, 0.046875, 0.140625),
    ),
    "pass_at_group": ((0, 0, 0, 0), (0, 0, 0, 0)),
    "qae_plain": ((1, 0, 0.25, 0), (0, -1, 0, 0.25)),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values_of_a_group_of_eight(name):
    two, six = GOLDEN[name]
    np.testing.assert_allclose([row(name, 2), row(name, 6)], [two, six], atol=2e-6)


@pytest.mark.parametrize(
    ("name", "count", "want"),
    [
        # Section 6.3: an interpolated quantile would give .2, -.8 at c = 5: no gate.
        ("qae", 2, (2.30940108, 0)),
        ("qae", 5, (0, -2.06559112)),
        ("qae_plain", 5, (0, -1)),
        # Section 6.4: an only success; an unsolved group under Linear-R.
        ("pass_at_group", 1, (1, 0)),
        ("linear_r", 0, (0, -1)),
        # Not zero where a constant baseline is: no group is there to learn from.
        ("reinforce", 8, (1, 0)),
        ("pkpo", 8, (4, 0)),
        ("pkpo", 0, (0, 0)),
    ],
)
def test_golden_values_at_other_counts(name, count, want):
    np.testing.assert_allclose(row(name, count)[:2], want, atol=2e-6)


def test_the_gate_of_qae_includes_its_edge():
    # p = 1 - K exactly: noise that rounds 0.4 * 5 up to 3 would close the gate.
    gate = adv.center_by_quantile(0.4)
    np.testing.assert_allclose(
        advantage(gate, [1, 1, 1, 0, 0])[0], [1, 1, 1, 0, 0], atol=1e-6
    )
    # and for every K = j / 12 the 12 - j successes stay above the quantile.
    level = np.arange(1, 12, dtype=np.float32)[:, None, None] / 12
    rewards = [[1] * (12 - j) + [0] * j for j in range(1, 12)]
    got = advantage(adv.center_by_quantile(jnp.asarray(level)), *rewards)
    chex.assert_trees_all_equal(got[:, 0], jnp.ones(11))


def test_qae_takes_graded_rewards():
    equal(advantage(adv.center_by_quantile(0.4), [0, 0.2, 0.5, 1]), [-0.2, 0, 0.3, 0.8])


@pytest.mark.parametrize("name", BALANCED)
def test_balanced_methods_have_equal_masses_for_every_count(name):
    got = table(name)
    np.testing.assert_allclose(got.m_S, got.m_F, atol=2e-6)
    assert np.abs(got.m_S).sum() > 0
    np.testing.assert_array_equal([got.A_S[8], got.A_F[0]], 0.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("l2", "grpo"),
        ("power_1", "dr_grpo"),
        ("f_grpo_on_mean", "power_2"),
        ("power_asym_1", "dr_grpo"),
        ("gu_half", "grpo"),
        ("gu_zero", "reinforce_signed"),
        ("opo", "dr_grpo"),
    ],
)
def test_special_cases_coincide(one, other):
    for a, b in zip(table(one), table(other), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize(
    ("alpha", "area", "peak"),
    [(1.5, 1.4583, 1.3448), (2.0, 2.0, 1.6875), (3.0, 3.3333, 2.3704)],
)
def test_power_scales_match_area_or_peak(alpha, area, peak):
    base = profile.analytic(profile.advantage_of(al.power(alpha)), 8)
    for scale_fn, want in ((fade.area_scale, area), (fade.peak_scale, peak)):
        method = al.power(alpha, scale_fn=scale_fn)
        scaled = profile.analytic(profile.advantage_of(method), 8)
        np.testing.assert_allclose(scaled.A_S, want * base.A_S, rtol=1e-4)


# Conventions of peers (../shared/anchors/peers.md, 6); baselines: test_baseline.py.


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


# ReMax.


def greedy_rollout(*greedy, reward):
    rows = fakes.rewards(*reward)
    source = jnp.asarray(greedy, jnp.int32) * Source.GREEDY
    return rows.replace(samples=rows.samples.replace(source=source))


def test_the_greedy_sample_is_the_baseline_and_takes_no_part():
    # The last sample is greedy: baselines 1 and 0, not the group's mean.
    mark = [0, 0, 0, 1]
    rows = greedy_rollout(mark, mark, reward=([1, 0, 0, 1], [1, 1, 0, 0]))
    credit, _ = apply(adv.center_by_greedy(), rows)
    equal(credit.advantage[:, :3, 0], [0, -1, -1], [1, 1, 0])
    chex.assert_trees_all_equal(credit.member[..., 0], jnp.asarray([mark] * 2) == 0)
    chex.assert_trees_all_equal(
        credit.weight[..., 0], 1.0 - jnp.asarray([mark] * 2, jnp.float32)
    )
    assert credit.metrics["fault/greedy_missing"].value == 0


def test_a_missing_greedy_sample_is_a_fault():
    # Baseline 0 in silence would be REINFORCE under the name of ReMax.
    rows = greedy_rollout([0, 0, 1], [0, 0, 0], reward=([1, 0, 1], [1, 0, 0]))
    credit, _ = apply(adv.center_by_greedy(), rows)
    assert credit.metrics["fault/greedy_missing"].value == 1


# OPO, section 6.2.


def test_the_length_weighted_baseline_balances_tokens():
    # b = (10 + 20) / 100; the group's mean would be .5.
    length = np.array([[10, 30, 40, 20]])
    rows = fakes.rollout(1, 4, 40, reward=[[1, 0, 0, 1]], length=length)
    credit, _ = apply(adv.center_by_length(), rows)
    equal(credit.advantage[..., 0], [0.7, -0.3, -0.3, 0.7])
    a, member = credit.advantage[..., 0], credit.member[..., 0]
    np.testing.assert_allclose(adv.masses(a, member), [[0.35], [0.15]], atol=1e-6)
    np.testing.assert_allclose(
        adv.masses(a, member, rows.samples.length.astype(jnp.float32)),
        [[0.21], [0.21]],
        atol=1e-6,
    )


@pytest.mark.parametrize("seed", range(5))
def test_opo_is_balanced_in_tokens_whatever_the_lengths(seed):
    rows = fakes.rollout(4, 5, 7, seed=seed)
    credit, _ = apply(adv.center_by_length(), rows)
    total = jnp.sum(jnp.where(rows.samples.mask, credit.advantage, 0.0), (1, 2))
    np.testing.assert_allclose(total, 0.0, atol=1e-5)


def test_opo_of_one_sample_keeps_the_reward():
    equal(advantage(adv.center_by_length(), [1], [0]), [1], [0])


# RS-GRPO and norms on graded rewards.


def test_risk_seeking_takes_graded_rewards_and_tends_to_the_mean():
    r = np.array([0.0, 0.25, 0.5, 1.0])
    tilt = np.exp(2 * r)
    equal(advantage(adv.center_by_risk(2.0), r), (tilt / tilt.mean() - 1) / 2)
    equal(advantage(adv.center_by_risk(1e-3), r), r - r.mean(), atol=1e-3)
    # Without subtracting the largest reward, e^(2000) overflows.
    equal(advantage(adv.center_by_risk(2.0), 1000 + r), (tilt / tilt.mean() - 1) / 2)


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


def test_noise_in_equal_rewards_does_not_become_an_advantage():
    for method in (
        adv.center_by_risk(2.0),
        chain(adv.center_by_group(), adv.scale_by_group_norm(1.0)),
        adv.center_by_quantile(0.4),
        adv.center_by_length(),
    ):
        got = advantage(method, [0.1, 0.1, 0.1], [0.7, 0.7, 0.7])
        chex.assert_trees_all_equal(got, jnp.zeros((2, 3)))


# PSR and NSR: which rows the token mean counts.


@functools.partial(jax.jit, static_argnums=0)
def weights(method, rollout):
    credits, state, _ = method.credit(rollout, method.init())
    (credit,), _, _ = method.weigh(credits, rollout, state)
    return credit


@pytest.mark.parametrize(
    ("method", "want"),
    [
        # Lengths 1, 2, 3, 4, rewards 1 0 0 1. The kept class has 1 + 4 or 2 + 3 tokens.
        (al.psr(), [1 / 5, 0, 0, 4 / 5]),
        (al.psr(rows=chain()), [1 / 10, 0, 0, 4 / 10]),
        (al.nsr(), [0, -2 / 5, -3 / 5, 0]),
        (al.nsr(rows=chain()), [0, -2 / 10, -3 / 10, 0]),
    ],
    ids=["psr", "psr_all_rows", "nsr", "nsr_all_rows"],
)
def test_dropping_the_other_class_rescales_the_token_mean(method, want):
    rows = fakes.rollout(1, 4, 4, reward=[[1, 0, 0, 1]], length=[[1, 2, 3, 4]])
    credit = weights(method, rows)
    np.testing.assert_allclose(
        jnp.sum(credit.weight * credit.advantage, -1), [want], atol=1e-6
    )


# Wrong arguments and wrong rewards.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: adv.center_by_quantile(0.0), "level"),
        (lambda: adv.center_by_quantile(1.0), "level"),
        (lambda: adv.center_by_risk(0.0), "beta"),
        (lambda: adv.scale_by_group_norm(0.0), "order"),
        (lambda: al.power(0.0), "alpha"),
        (lambda: al.asym_grpo(0.0), "delta"),
        (lambda: al.f_grpo(-0.1), "gamma"),
        (lambda: al.power_asym(0.0, 1.0), "success"),
        (lambda: al.asym_grpo_by_odds(failure=-1.0), "failure"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=f"{message} must lie in"):
        make()


@pytest.mark.parametrize(
    "transform",
    [
        adv.center_by_quantile(0.4),
        adv.center_by_risk(2.0),
        adv.scale_by_group_norm(1.0),
        adv.best_minus_second(),
    ],
)
def test_one_sample_is_too_few(transform):
    with pytest.raises(ValueError, match=r"\(\) needs .* raise num_samples"):
        advantage(transform, [1], [0])


def test_rewards_outside_the_unit_interval_are_counted():
    # p of rewards +-1 is no solve rate: the run must stop, not train on 1 / p < 0.
    rate = adv.scale_by_rate(lambda p: 1 / p)
    for rewards, count in (([1, -1, 0.5], 1), ([1, 0, 0.5], 0), ([math.nan, 2, 1], 2)):
        rows = fakes.rewards([0, 0, 0])
        reward = jnp.asarray([rewards], jnp.float32)
        rows = rows.replace(verdict=rows.verdict.replace(reward=reward))
        credit, _ = apply(rate, rows)
        assert credit.metrics["fault/reward_out_of_range"].value == count


def test_classes_are_read_off_correct_and_not_off_the_reward():
    # Shaped rewards leave p alone: 2 of 4 are correct.
    rows = fakes.rewards([0.2, 0.9, -0.5, 0.0])
    correct = jnp.asarray([[True, True, False, False]])
    rows = rows.replace(verdict=rows.verdict.replace(correct=correct))
    odds = adv.assign_by_class(lambda g: g.p, lambda g: -g.n)
    equal(apply(odds, rows)[0].advantage[..., 0], [0.5, 0.5, -4, -4])


def test_rows_that_are_no_members_stay_finite():
    # A failed verifier's row in an unsolved group: 1 / p is infinite, weight 0, and
    # 0 * inf in the backward pass would be NaN.
    rows = fakes.solved(8, 1)
    failed = jnp.arange(8)[None] == 0
    rows = rows.replace(verdict=rows.verdict.replace(failed=failed))

    @jax.jit
    def run(rows):
        return {name: weights(method, rows) for name, method in RECIPES.items()}

    for name, credit in run(rows).items():
        assert bool(jnp.all(jnp.isfinite(credit.advantage))), name


# Every recipe as a whole.


def coefficients(method, rollout):
    """-dL/dlogp f32[P, G, T] at the first optimiser step."""
    credits, state, metrics = method.credit(rollout, method.init())
    rows = rollout.replace(current=rollout.old)
    credits, _, more = method.weigh(credits, rows, state)
    grads = jax.grad(lambda now: method.loss(now, credits, rows))(rollout.old)
    return -grads.logp, {**metrics, **more}


WHOLE = RECIPES | {
    "gpg": al.gpg(),
    "reinforce_plus_plus": al.reinforce_plus_plus(),
    "reinforce_plus_plus_baseline": al.reinforce_plus_plus_baseline(),
    "curve_rl": al.curve_rl(8),
    "a_grae": al.a_grae(),
    "fade": al.fade(),
    "grpo_kl": al.grpo_kl(beta=1e-3),
    "remax": al.remax(),
}


@pytest.fixture(scope="module")
def whole():
    one, three = [1] + [0] * 7, [1] * 3 + [0] * 5
    length = np.full((3, 8), 2)
    rows = fakes.rollout(3, 8, 3, reward=[one, three, [0] * 8], length=length)
    source = jnp.zeros((3, 8), jnp.int32).at[:, 7].set(Source.GREEDY)
    greedy = rows.replace(samples=rows.samples.replace(source=source))

    @jax.jit  # one program for all: compiling 45 of them would take a minute
    def run(rows, greedy):
        return {
            name: coefficients(method, greedy if name == "remax" else rows)
            for name, method in WHOLE.items()
        }

    return run(rows, greedy)


@pytest.mark.parametrize("name", WHOLE)
def test_every_recipe_prefers_successes_to_failures(whole, name):
    # One token's coefficient of a success over that of a failure, at p = 1/8.
    coefficient, metrics = whole[name]
    chex.assert_tree_all_finite(coefficient)
    assert coefficient[0, 0, 0] > coefficient[0, 1, 0] + 1e-4
    assert float(jnp.abs(coefficient[..., 2:]).max()) == 0.0  # outside the mask
    assert all(count == 0 for count in metric.faults(metrics).values())


def test_the_fade_recipe_passes_its_numbers_on():
    # E3 of section 2.5: p_hat .29775 and H_hat .598 after the step; alpha at its limit.
    rows = fakes.solved(8, 2, 1)
    stats = rows.old.replace(entropy=jnp.full((2, 8, 1), 0.5))
    method = al.fade(entropy_target=1.0, p_init=0.3, alpha_max=2.0, delta_min=0.6)
    (credit,), _, metrics = method.credit(rows.replace(old=stats), method.init())
    # The first entropy, .5, starts its average: delta would be .5, and is .6 at least.
    np.testing.assert_allclose(metrics["policy/alpha"], 2.0)
    np.testing.assert_allclose(metrics["policy/delta"], 0.6, rtol=1e-6)
    np.testing.assert_allclose(metrics["policy/p_ema"], 0.29775, rtol=1e-6)
    want = [0.75 * 0.75, -0.25 * 0.75 / 0.6]
    np.testing.assert_allclose(credit.advantage[0, (0, 7), 0], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (al.power, (1.0, 2.5)),
        (al.norm_grpo, (1.0, 2.5)),
        (al.asym_grpo, (0.5, 2.0)),
        (al.f_grpo, (0.0, 1.0)),
        (lambda x: al.power_asym(x, 2.0), (1.0, 2.0)),
        (lambda x: al.asym_grpo_by_odds(success=x), (0.5, 0.9)),
        (lambda x: al.rs_grpo(beta=x), (0.5, 2.0)),
        (lambda x: al.qae(level=x), (0.2, 0.6)),
        (lambda x: al.w_reinforce(weight=x), (0.1, 0.5)),
        (lambda x: al.a_grae(k0=x), (0.5, 1.0)),
    ],
)
def test_numbers_may_be_traced(make, values):
    rows = fakes.solved(5, 2, 3, 0)

    @jax.jit
    def advantage_of(value):
        method = make(value)
        return method.credit(rows, method.init())[0][0].advantage

    together = jax.vmap(advantage_of)(jnp.asarray(values, jnp.float32))
    for value, got in zip(values, together, strict=True):
        chex.assert_trees_all_close(got, advantage_of(value), rtol=1e-5)
    assert float(jnp.abs(together[0] - together[1]).max()) > 1e-3
