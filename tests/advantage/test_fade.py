"""FADE by hand, its limits and its options.

The examples E1 to E7 follow from the formula (arXiv:2607.01490) with groups of 8, rate
.02 and H* = 1. E1 starts at p_hat .5 and H_hat 2; it measures entropy .9 and groups of
2 and 6 successes: p_hat = .98 * .5 + .02 * .5, H_hat = .98 * 2 + .02 * .9 = 1.978. Then
alpha = 1.5 (1 - p_hat) / p_hat = 1.5, delta = clip(1 + H_hat - H*, .3, 1) = 1, and
at 2 of 8 A_S = .75^.5 * .75.
"""

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljax import advantage as adv
from rljax.advantage import chain, fade
from rljax.types import Missing, NotMeasured, TokenStats

pytestmark = pytest.mark.usefixtures("strict")


def batch(entropy, *counts):
    """Groups of 8 with `counts` solved, mean token entropy `entropy` nats."""
    rows = fakes.solved(8, *counts)
    old = rows.old.replace(entropy=jnp.full_like(rows.old.entropy, entropy))
    return rows.replace(old=old)


def fixed(alpha, delta=1.0, **options):
    """FADE with constant alpha and delta."""
    value = fade.FadeValue(*map(jnp.float32, (alpha, delta, 0.5, 1.0)))
    return adv.scale_by_fade(controller=adv.constant(value), **options)


def made(**options):
    """FADE with some options of its own and others of its schedule."""
    own = {"base", "focal_rate_fn", "scale_fn", "reward_range"} & set(options)
    own = {name: options.pop(name) for name in own}
    return adv.scale_by_fade(adv.fade_controller(**options), **own)


def edges(credit):
    """[P, 2]: advantage of a success (row 0) and of a failure (the last row)."""
    return credit.advantage[:, (0, -1), 0]


E1 = ((2.0, 0.5), (0.9, 2, 6), (0.5, 1.978, 1.5, 1.0))
E1_ADVANTAGE = [[0.64951905, -0.21650635], [0.125, -0.375]]
EXAMPLES = {
    "E1": (*E1, E1_ADVANTAGE),
    "E3": (
        (0.6, 0.3),
        (0.5, 2, 1),
        (0.29775, 0.598, 3.0, 0.598),
        [[0.421875, -0.23515886], [0.66992188, -0.16003867]],
    ),
    "E4": (
        (0.41, 0.7),
        (0.36, 2, 6),
        (0.696, 0.409, 1.0, 0.409),
        [[0.75, -0.61124694], [0.25, -1.83374083]],
    ),
    "E5": (
        (0.2, 0.7),
        (0.1, 8, 0, 4),
        (0.696, 0.198, 1.0, 0.3),
        [[0, 0], [0, 0], [0.5, -1.66666667]],
    ),
}


def check_example(credit, state, averages, advantages):
    p, h, alpha, delta = averages
    got = credit.metrics
    want = {"p_ema": p, "h_ema": h, "alpha": alpha, "delta": delta}
    chex.assert_trees_all_close({k: got[k] for k in want}, want, rtol=2e-6)
    chex.assert_trees_all_close(state.controller.p_ema, p, rtol=2e-6)
    chex.assert_trees_all_close(edges(credit), jnp.array(advantages), rtol=2e-6)
    assert got["fault/reward_out_of_range"].value == 0


@pytest.mark.parametrize(
    ("before", "rows", "averages", "advantages"), EXAMPLES.values(), ids=EXAMPLES
)
def test_examples_of_the_specification(before, rows, averages, advantages):
    h, p = before
    method = made(p_init=p, h_init=h, entropy_target=1.0)
    credit, state = laws.apply(method, batch(*rows))
    check_example(credit, state, averages, advantages)


def test_example_e2_continues_the_state_of_e1():
    # Averages first, then alpha and delta of the same batch: with the old averages
    # alpha would still be 1.5.
    method = made(p_init=0.5, h_init=2.0, entropy_target=1.0)
    _, state = laws.apply(method, batch(0.9, 2, 6))
    rows = batch(0.8, 2, 1)
    credit, state = method.update(adv.initial_credit(rows), rows, state)
    check_example(
        credit,
        state,
        (0.49375, 1.95444, 1.53797468, 1.0),
        [[0.64246191, -0.21415397], [0.81434766, -0.11633538]],
    )
    assert int(state.controller.step) == 2


def test_example_e6_starts_from_the_first_measured_entropy():
    # Blending the first entropy with an initial 0 would give H 0.4 and H* 0.2.
    controller = adv.fade_controller(ema_rate=0.5)
    _, state = controller.init()
    seen = []
    for mean, entropy in ((0.25, 0.8), (0.75, 0.2), (0.75, 0.1)):
        measured = fade.FadeMeasurement(jnp.float32(mean), jnp.float32(entropy))
        value, state = controller.update(measured, state)
        seen.append([float(value.p_ema), float(value.h_ema), *map(float, value[:2])])
    want = [
        [0.375, 0.8, 2.5, 1.0],
        [0.5625, 0.5, 1.16666667, 1.0],
        [0.65625, 0.3, 1.0, 0.9],
    ]
    chex.assert_trees_all_close(jnp.array(seen), jnp.array(want), rtol=2e-6)
    assert float(state.h_init) == pytest.approx(0.8)


def test_example_e7_takes_graded_rewards():
    got = laws.apply(fixed(2.0, 0.5), fakes.rewards([0, 0.25, 0.5, 1]))[0].advantage
    want = jnp.array([-0.4921875, -0.2109375, 0.03515625, 0.31640625])
    chex.assert_trees_all_close(got[0, :, 0], want, rtol=2e-6)


GOLDEN = {
    # name: (transform, c = 2 of 8: A_S, A_F, c = 6 of 8: A_S, A_F); by formula.
    "dr_grpo": (fixed(1.0), (0.75, -0.25), (0.25, -0.75)),
    "asym_grpo": (fixed(1.0, 0.5), (0.75, -0.5), (0.25, -1.5)),
    "power_2": (fixed(2.0), (0.5625, -0.1875), (0.0625, -0.1875)),
    "pass_at_4": (
        chain(
            fixed(4.0), adv.stateless(lambda c, r: c.replace(advantage=4 * c.advantage))
        ),
        (1.265625, -0.421875),
        (0.015625, -0.046875),
    ),
    "f_grpo_on_grpo": (
        fixed(1.5, base=chain(adv.center_by_group(), adv.scale_by_group_std())),
        (1.5, -0.5),
        (0.288675, -0.866025),
    ),
    "success_only": (fixed(1.0, 1e30), (0.75, 0.0), (0.25, 0.0)),
}


@pytest.mark.parametrize(("transform", "two", "six"), GOLDEN.values(), ids=GOLDEN)
def test_special_cases(transform, two, six):
    credit, _ = laws.apply(transform, fakes.solved(8, 2, 6))
    chex.assert_trees_all_close(edges(credit), jnp.array([two, six]), atol=2e-6)


def test_alpha_and_delta_of_one_are_dr_grpo_and_rloo_up_to_a_factor():
    rows = fakes.rollout()
    one, _ = laws.op_by_op(fixed(1.0), rows)
    dr_grpo, _ = laws.op_by_op(adv.center_by_group(), rows)
    rloo, _ = laws.op_by_op(adv.center_by_leave_one_out(), rows)
    chex.assert_trees_all_equal(one.advantage, dr_grpo.advantage)
    chex.assert_trees_all_close(one.advantage * (4 / 3), rloo.advantage, rtol=1e-6)


@given(st.integers(1, 7), st.floats(1, 3, width=32), st.floats(0.3125, 1, width=32))
def test_masses_are_p_q_to_the_alpha_with_ratio_delta(count, alpha, delta):
    credit, _ = laws.apply(fixed(alpha, delta), fakes.solved(8, count))
    m_S, m_F = adv.masses(credit.advantage[..., 0], credit.member[..., 0])
    p = count / 8
    assert float(m_S[0]) == pytest.approx(p * (1 - p) ** alpha, rel=1e-5)
    assert float(m_S[0] / m_F[0]) == pytest.approx(delta, rel=1e-5)


UNIT = st.floats(0, 1, width=32)


def value_at(p, h, **options):
    """FADE's value when the averages are p and h: they start and stay there."""
    controller = adv.fade_controller(p_init=p, h_init=h, entropy_target=1.0, **options)
    measured = fade.FadeMeasurement(jnp.float32(p), jnp.float32(h))
    return controller.update(measured, controller.init()[1])[0]


@given(UNIT, UNIT, st.floats(0, 3, width=32), st.floats(0, 3, width=32))
def test_alpha_falls_with_the_solve_rate_and_delta_rises_with_entropy(p, p2, h, h2):
    (p, p2), (h, h2) = sorted((p, p2)), sorted((h, h2))
    low, high = value_at(p, h), value_at(p2, h2)
    assert 1 <= float(high.alpha) <= float(low.alpha) <= 3
    assert 0.3 - 1e-6 <= float(low.delta) <= float(high.delta) <= 1


def test_no_success_at_all_is_the_largest_alpha_and_not_a_division_by_zero():
    value = value_at(0.0, 1.0)
    assert (float(value.alpha), float(value.delta)) == (3.0, 1.0)


def test_the_schedule_turns_at_a_third_and_at_three_fifths():
    alphas = [float(value_at(p, 1.0).alpha) for p in (1 / 3, 0.4, 0.5, 0.6)]
    assert alphas == pytest.approx([3, 2.25, 1.5, 1], rel=1e-5)


# Options: each changes something, to a number computed by hand.


def logged(rows, **options):
    options = {"p_init": 0.5, "h_init": 2.0, "entropy_target": 1.0} | options
    credit, _ = laws.apply(made(**options), rows)
    return credit.metrics, edges(credit)


@pytest.mark.parametrize(
    ("options", "name", "want"),
    [
        ({}, "h_ema", 1.978),
        ({"ema_rate": 0.98}, "h_ema", 0.922),  # the note read literally
        ({"ema_rate": 0.98}, "delta", 0.922),
        ({"p_init": 0.4}, "p_ema", 0.402),
        ({"h_init": 1.0}, "h_ema", 0.998),
        ({"h_init": None}, "h_ema", 0.9),
        ({"entropy_target": 2.5}, "delta", 0.478),
        # H* = frac * h_init when no absolute target is given.
        ({"entropy_target": None, "entropy_target_frac": 1.1}, "delta", 0.778),
        ({"entropy_target": 2.5, "delta_slope": 0.5}, "delta", 0.739),
        ({"entropy_target": 2.5, "delta_min": 0.6}, "delta", 0.6),
        ({"entropy_target": 0.5, "delta_max": 1.5}, "delta", 1.5),
        ({"alpha_gain": 2.0}, "alpha", 2.0),
        ({"alpha_max": 1.25}, "alpha", 1.25),
        ({"alpha_min": 1.75}, "alpha", 1.75),
    ],
)
def test_options_of_the_schedule(options, name, want):
    metrics, _ = logged(batch(0.9, 2, 6), **options)
    assert float(metrics[name]) == pytest.approx(want, rel=1e-5)


def test_the_focal_rate_may_be_the_run_average():
    # (1 - .5)^.5 for both groups, where the group's own p gives (.75)^.5 and (.25)^.5.
    _, got = logged(batch(0.9, 2, 6), focal_rate_fn=fade.run_rate)
    want = 0.5**0.5 * jnp.array([[0.75, -0.25], [0.25, -0.75]])
    chex.assert_trees_all_close(got, want, rtol=2e-6)


@pytest.mark.parametrize(
    ("scale", "want"),
    [
        (fade.unit_scale, [1, 1, 1, 1]),
        (fade.area_scale, [1, 1.4583333, 2, 3.3333333]),
        (fade.peak_scale, [1, 1.3448, 1.6875, 2.3703704]),
    ],
)
def test_scales_match_area_or_peak_of_alpha_one(scale, want):
    alpha = jnp.array([1, 1.5, 2, 3])
    chex.assert_trees_all_close(scale(alpha), jnp.array(want, jnp.float32), rtol=1e-4)
    _, got = logged(batch(0.9, 2, 6), scale_fn=scale)
    chex.assert_trees_all_close(got, want[1] * jnp.array(E1_ADVANTAGE), rtol=1e-4)


def test_rewards_of_plus_and_minus_one_are_mapped_to_the_unit_interval():
    rows = batch(0.9, 2, 6)
    signed = rows.verdict.replace(reward=2 * rows.verdict.reward - 1)
    metrics, got = logged(rows.replace(verdict=signed), reward_range=(-1.0, 1.0))
    chex.assert_trees_all_close(got, jnp.array(E1_ADVANTAGE), rtol=2e-6)
    assert float(metrics["p_ema"]) == pytest.approx(0.5)
    assert metrics["fault/reward_out_of_range"].value == 0


def test_rewards_out_of_range_are_counted_as_a_fault():
    rows = fakes.rewards([1, -0.5, 0], [2, 1, 7])
    metrics, _ = logged(rows)
    assert metrics["fault/reward_out_of_range"].value == 3
    failed = jnp.zeros((2, 3), bool).at[1, 2].set(True)
    rows = rows.replace(verdict=rows.verdict.replace(failed=failed))
    assert logged(rows)[0]["fault/reward_out_of_range"].value == 2


def test_the_solve_rate_counts_solved_groups_but_no_failed_verifications():
    # 8/8 and 0/8 and 4/8: mean 1/2; without the groups of equal rewards it is 1/2,
    # too, so three groups: 8/8, 8/8, 2/8 have 3/4 (mixed ones alone: 1/4).
    metrics, _ = logged(batch(0.9, 8, 8, 2), ema_rate=1.0)
    assert float(metrics["p_ema"]) == pytest.approx(0.75)
    rows = batch(0.9, 4)
    rows = rows.replace(
        verdict=rows.verdict.replace(failed=rows.verdict.reward.at[0, 0].set(0) > 0)
    )  # three successes failed to verify: one of five is left
    metrics, _ = logged(rows, ema_rate=1.0)
    assert float(metrics["p_ema"]) == pytest.approx(0.2)


def test_without_entropies_the_mean_of_minus_logp_over_tokens_takes_their_place():
    # The mean of row means would be 1.00416667.
    rows = fakes.rollout(1, 2, 3, reward=[[1, 0]], length=[[3, 2]])
    logp = jnp.array([[[-0.2, -1.6, -0.7], [-0.05, -2.3, 99]]])
    rows = rows.replace(old=TokenStats(logp=logp))
    assert float(fade.mean_entropy(rows)) == pytest.approx(0.97)
    metrics, _ = logged(rows)
    assert float(metrics["h_ema"]) == pytest.approx(1.9794)


def test_without_any_statistics_of_the_sampling_policy_fade_says_who_supplies_them():
    rows = fakes.rollout().replace(old=Missing("old", "a sampler supplies it"))
    with pytest.raises(NotMeasured, match="a sampler supplies it"):
        logged(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_rate": 0.0}, "ema_rate must lie in"),
        ({"p_init": 1.5}, "p_init must lie in"),
        ({"alpha_min": 2.0, "alpha_max": 1.0}, "alpha_min <= alpha_max"),
        ({"delta_min": 0.0}, "delta_min must lie in"),
        ({"delta_min": 2.0}, "delta_min <= delta_max"),
        ({"reward_range": (1.0, 0.0)}, "low < high"),
    ],
)
def test_static_mistakes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        made(**options)


def test_a_population_of_schedules_is_a_vmap():
    # EMA rates .02 and .98 in one program: the numbers of two separate runs.
    def average(rate):
        return logged(batch(0.9, 2, 6), ema_rate=rate)[0]["h_ema"]

    got = jax.vmap(average)(jnp.array([0.02, 0.98]))
    chex.assert_trees_all_close(got, jnp.array([1.978, 0.922]), rtol=1e-5)
