"""Static advantages of groups: golden values by formula, by hand, and of peers.

The golden tables run the recipes themselves through `profile.analytic`.
"""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from group_recipes import RECIPES, table

from rljax import advantage as adv
from rljax import algorithms as al
from rljax import metric
from rljax.advantage import chain, fade
from rljax.analysis import profile
from rljax.types import Source

pytestmark = pytest.mark.usefixtures("strict")


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


def row(name, count, num_samples=8):
    return [float(column[count]) for column in table(name, num_samples)]


# G = 8: (A_S, A_F, m_S, m_F) at c = 2 and at c = 6, computed in float64 by the formula
# in each recipe's docstring with p = c / 8 and q = 1 - p; m_S = p A_S, m_F = -q A_F.
GOLDEN = {
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
        # K = .4: an interpolated quantile would give .2, -.8 at c = 5: no gate.
        ("qae", 2, (2.30940108, 0)),
        ("qae", 5, (0, -2.06559112)),
        ("qae_plain", 5, (0, -1)),
        # An only success; an unsolved group under Linear-R.
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
    # E3 of test_fade.py: p_hat .29775, H_hat .598 after the step; alpha at its limit.
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
