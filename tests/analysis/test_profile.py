"""Analytic and expected masses: slopes of objectives, batch dependence, figures."""

import math

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import test_advantages

from rljax import advantage as adv
from rljax import algorithms as al
from rljax.advantage import fade
from rljax.analysis import plot, profile

RATES = np.array([0.1, 0.25, 0.6, 0.9])
G, K, DELTA, B = 8, 4, 0.5, 2.0
table = test_advantages.table

# f'(p) of groups of G = 8, exact (section 1).
EXACT = {
    "reinforce": lambda p, q: 1,
    "reinforce_baseline": lambda p, q: 1,
    "psr": lambda p, q: 1,
    "nsr": lambda p, q: 1,
    "rloo": lambda p, q: 1,
    "reinforce_signed": lambda p, q: 2,
    "w_reinforce": lambda p, q: 1.1,
    "dr_grpo": lambda p, q: (G - 1) / G,
    "asym_grpo": lambda p, q: (G - 1) / G * (q + p / DELTA),
    "raft": lambda p, q: (1 - q**G) / p,
    "linear_r": lambda p, q: (1 - q**G) / p,
    "maxrl": lambda p, q: (1 - q ** (G - 1)) / p,
    "pkpo": lambda p, q: K * q ** (K - 1),
    "pkpo_minus_one": lambda p, q: K * q ** (K - 1),
    "pass_at_group": lambda p, q: q ** (G - 1),
}

# f' of section 3 for the others: the limit of large groups.
LIMIT = {
    "grpo": lambda p, q: 1 / np.sqrt(p * q),
    "grpo_ddof_1": lambda p, q: 1 / np.sqrt(p * q),
    "opo": lambda p, q: 1,
    "l1": lambda p, q: 1 / (2 * p * q),
    "l2": lambda p, q: 1 / np.sqrt(p * q),
    "l_inf": lambda p, q: 1 / np.maximum(p, q),
    "sqrt_r": lambda p, q: 1 / np.sqrt(p),
    "log_failure": lambda p, q: 1 / q,
    "log_odds": lambda p, q: 1 / (p * q),
    "power_1": lambda p, q: 1,
    "power_2": lambda p, q: q,
    "power_3_peak": lambda p, q: 4**4 / (4 * 27) * q**2,
    "pass_at_4": lambda p, q: 4 * q**3,
    "f_grpo": lambda p, q: q**0.5 / np.sqrt(p * q),
    "f_grpo_on_mean": lambda p, q: q,
    "rs_grpo": lambda p, q: np.expm1(B) / B / (1 + p * np.expm1(B)),
    "gu": lambda p, q: (q / p) ** 0.9 + (p / q) ** 0.4,
    "gu_half": lambda p, q: 1 / np.sqrt(p * q),
    "gu_zero": lambda p, q: 2,
    "power_asym": lambda p, q: q**2 + p**2,
    "power_asym_1": lambda p, q: 1,
    "qae": lambda p, q: 1 / np.sqrt(p * q),
    "qae_plain": lambda p, q: 1,
    "pkpo_leave_one_out": lambda p, q: q**3,
    "pass_at_k_training": lambda p, q: q**3 / np.sqrt(q**4 * (1 - q**4)),
}


def test_every_method_has_a_slope():
    assert EXACT.keys() | LIMIT.keys() == test_advantages.RECIPES.keys()


@pytest.mark.parametrize("name", EXACT)
def test_expected_masses_give_the_slope_of_the_objective_at_finite_groups(name):
    # Reading the plug-in p = c / G as the true rate would give pq-like errors: Dr. GRPO
    # 1 instead of 7/8.
    want = np.broadcast_to(EXACT[name](RATES, 1 - RATES), RATES.shape)
    got = profile.slope(table(name), RATES)
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize("name", LIMIT)
def test_expected_masses_give_the_slope_of_the_objective_at_large_groups(name):
    p = np.array([0.25, 0.7])  # QAE jumps at 0.6
    got = profile.slope(table(name, 600), p)
    np.testing.assert_allclose(got, LIMIT[name](p, 1 - p) * np.ones(2), rtol=2e-2)


def test_grpo_converges_to_its_limit_as_printed():
    np.testing.assert_allclose(profile.slope(table("grpo"), 0.25), 2.026116, atol=2e-6)
    got = profile.slope(table("grpo", 2000), 0.25)
    np.testing.assert_allclose(got, 2.309401, rtol=4e-4)


@pytest.mark.parametrize("name", ["pkpo", "pkpo_minus_one"])
def test_both_forms_of_pkpo_have_the_printed_slope(name):
    np.testing.assert_allclose(profile.slope(table(name), 0.25), 1.6875, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("pkpo", lambda p: 1 - (1 - p) ** K),
        ("maxrl", lambda p: -sum((1 - p) ** k / k for k in range(1, G))),
        ("reinforce_signed", lambda p: 2 * p),
        ("pass_at_group", lambda p: -((1 - p) ** G) / G),
    ],
)
def test_the_slope_is_the_policy_gradient(name, objective):
    # A policy with p = sigmoid(x): the expected update, summed over c, against the
    # derivative of the objective. Nothing here knows of masses.
    x = 0.4
    p = 1 / (1 + math.exp(-x))
    got = table(name)
    c = np.arange(G + 1)
    score = c * got.A_S * (1 - p) + (G - c) * got.A_F * -p  # sum of A grad log pi
    update = profile.binomial(G, p) @ score / G
    want = jax.grad(lambda x: objective(jax.nn.sigmoid(x)))(x)
    np.testing.assert_allclose(update, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("dr_grpo", 0.1640625),
        ("rloo", 0.1875),
        ("maxrl", 0.64988708),
        ("raft", 0.89988708),
        ("grpo", 0.37989667),
        ("power_2", 0.11279297),
    ],
)
def test_expected_masses_as_printed(name, want):
    m_S, m_F = profile.expected(table(name), 0.25)
    np.testing.assert_allclose(m_S, want, atol=2e-7)
    np.testing.assert_allclose(m_F, 0 if name == "raft" else want, atol=2e-7)


def fixed_fade(alpha, delta):
    value = fade.FadeValue(*map(jnp.float32, (alpha, delta, 0.5, 1.0)))
    return adv.fade_advantage(controller=adv.constant(value))


def test_fade_with_fixed_numbers_has_its_closed_masses():
    got = profile.analytic(fixed_fade(2.0, 0.5), 8)
    p, q = got.p, 1 - got.p
    np.testing.assert_allclose(got.m_S, p * q**2, atol=1e-6)
    np.testing.assert_allclose(got.m_F, 2 * p * q**2, atol=1e-6)
    large = profile.analytic(fixed_fade(2.0, 0.5), 600)
    want = 0.75 * (0.75 + 0.25 / 0.5)
    np.testing.assert_allclose(profile.slope(large, 0.25), want, rtol=6e-3)


def test_the_binomial_adds_to_one_and_has_its_mean():
    for n in (1, 8, 1000):
        chance = profile.binomial(n, RATES)
        np.testing.assert_allclose(chance.sum(-1), 1, rtol=1e-9)
        np.testing.assert_allclose(chance @ np.arange(n + 1), n * RATES, rtol=1e-9)


@pytest.mark.parametrize(
    "method",
    [
        al.reinforce_plus_plus(),
        al.reinforce_plus_plus_baseline(),
        al.gpg(),
        al.a_grae(),
        al.curve_rl(8),
        al.fade(),
    ],
    ids=["r++", "r++_baseline", "gpg", "a_grae", "curve_rl", "fade"],
)
def test_methods_that_depend_on_the_batch_say_so(method):
    # A table of one-prompt batches would be another method's: CurveRL's would be
    # Dr. GRPO, REINFORCE++'s would be GRPO.
    transform = profile.advantage_of(method)
    with pytest.raises(ValueError, match="the rest of the batch; pass company"):
        profile.analytic(transform, 8)
    got = profile.analytic(transform, 8, company=(0, 2, 5, 8))
    assert np.abs(got.m_S).sum() > 0


def test_methods_that_need_more_than_successes_say_so():
    with pytest.raises(ValueError, match="greedy_missing"):
        profile.analytic(profile.advantage_of(al.remax()), 8)
    by_surprise = adv.stateless(
        lambda c, r: c.replace(advantage=c.advantage - r.old.logp)
    )
    with pytest.raises(ValueError, match="log-probabilities"):
        profile.analytic(by_surprise, 8)


def test_place_has_the_definitions_of_the_batch_summary():
    # The same prompts, one group for each c, as a batch and as a distribution.
    got = table("asym_grpo")
    rows = test_advantages.fakes.solved(8, *range(9))
    method = test_advantages.RECIPES["asym_grpo"]
    credit = method.credit(rows, method.init())[0][0]
    m_S, m_F = adv.masses(credit.advantage[..., 0], credit.member[..., 0])
    want = adv.mass.summary(m_S, m_F, jnp.arange(9) / 8)
    np.testing.assert_allclose(want["log_ratio"], np.log(0.5), atol=1e-5)
    # Under even p, c is even on 0..G.
    place = profile.place(got, (np.arange(4000) + 0.5) / 4000)
    np.testing.assert_allclose(place.log_ratio, want["log_ratio"], atol=1e-4)
    np.testing.assert_allclose(place.difficulty, want["difficulty"], atol=1e-3)
    np.testing.assert_allclose(
        place.scale, want["positive"] + want["negative"], rtol=1e-3
    )


def test_places_order_methods_by_sign_and_difficulty():
    at = {name: profile.place(table(name)) for name in EXACT | LIMIT}
    assert at["psr"].log_ratio == at["pkpo"].log_ratio == np.inf
    assert at["nsr"].log_ratio == -np.inf
    assert at["power_3_peak"].difficulty < at["power_2"].difficulty
    assert at["power_2"].difficulty < at["dr_grpo"].difficulty
    assert at["dr_grpo"].difficulty < at["log_failure"].difficulty


def test_equalised_methods_keep_their_place_and_lose_their_scale():
    before, after = table("gu"), profile.equalised(table("gu"))
    assert profile.place(after).scale == pytest.approx(1)
    np.testing.assert_allclose(
        profile.place(after)[:2], profile.place(before)[:2], rtol=1e-9
    )


def test_a_method_without_mass_has_no_place():
    nothing = adv.stateless(lambda c, r: c.replace(advantage=0 * c.advantage))
    with pytest.raises(ValueError, match="needs a method with mass"):
        profile.place(profile.analytic(nothing, 4))


def test_figures_show_every_method(tmp_path):
    matplotlib.use("Agg")
    names = ["psr", "nsr", "grpo", "l1", "maxrl", "power_2", "pkpo", "gu"]
    profiles = {name: table(name) for name in names}
    figure = plot.plane(profiles)
    texts = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert all(name in texts for name in names)
    assert "grpo, l1" in texts  # at the same place: one label, no overprint
    figure.savefig(tmp_path / "plane.png")
    figure = plot.curves(profiles)
    assert [len(ax.lines) for ax in figure.axes] == [len(names) + 1] * 2
    line = figure.axes[0].lines[names.index("maxrl")]
    p, mass = line.get_data()
    np.testing.assert_allclose(mass, (1 - p) - (1 - p) ** 8, atol=1e-5)
    matplotlib.pyplot.close("all")
