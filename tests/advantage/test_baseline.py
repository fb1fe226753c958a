"""Group baselines against hand-computed and published numbers."""

import chex
import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mixed import (
    DEMONSTRATION,
    OWN,
    Row,
    group,
)
from rewarded import advantage, apply, equal

from rljax import advantage as adv
from rljax.advantage import chain
from rljax.types import Source

pytestmark = pytest.mark.usefixtures("strict")


GRPO = chain(adv.center_by_group(), adv.scale_by_group_std())
TORCH = chain(adv.center_by_group(), adv.scale_by_group_std(ddof=1, epsilon=1e-6))


# Four samples, by hand: RLOO is 4/3 (r - mean), torch's deviation has ddof 1 and 1e-6.
# The rest are peers' own tests.


@pytest.mark.parametrize(
    ("transform", "rewards", "want"),
    [
        # A mean over the batch instead of the group would mix 1/2 and 1/4.
        (adv.center_by_group(), [1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        (adv.center_by_group(), [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (
            adv.center_by_leave_one_out(),
            [1, 0, 0, 1],
            [0.666667, -0.666667, -0.666667, 0.666667],
        ),
        (
            adv.center_by_leave_one_out(),
            [1, 0, 0, 0],
            [1, -0.333333, -0.333333, -0.333333],
        ),
        (GRPO, [1, 0, 0, 1], [1, -1, -1, 1]),
        (GRPO, [1, 0, 0, 0], [1.732051, -0.577350, -0.577350, -0.577350]),
        (TORCH, [1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024]),
        (TORCH, [1, 0, 0, 0], [1.499997, -0.499999, -0.499999, -0.499999]),
        # marin tests/rl/test_loss.py; tunix tests/rl/algo_core_test.py.
        (adv.center_by_leave_one_out(), [0, 1, 0], [-0.5, 1, -0.5]),
        (adv.center_by_leave_one_out(), [1, 1, 1], [0, 0, 0]),
        (adv.center_by_leave_one_out(), [0, 0.5, 1], [-0.75, 0, 0.75]),
        (adv.center_by_leave_one_out(), [1, 2, 3], [-1.5, 0, 1.5]),
        (adv.center_by_leave_one_out(), [4, 5, 6], [-1.5, 0, 1.5]),
        # SkyRL tests/.../test_ppo_utils.py.
        (adv.center_by_leave_one_out(), [6, 3], [3, -3]),
        (adv.center_by_group(), [6, 3], [1.5, -1.5]),
        (adv.center_by_group(), [9, 12], [-1.5, 1.5]),
    ],
)
def test_published_numbers(transform, rewards, want):
    equal(advantage(transform, rewards), want)


# G = 8, 2 and 6 successes, p = 1/4 and 3/4: (A_S, A_F) = (1 - p, -p) times 1, 8/7,
# 1 / sqrt(p q), sqrt(7/8) of that, q, q^(1/2) / sqrt(p q); in the last failures twice.


@pytest.mark.parametrize(
    ("transform", "two", "six"),
    [
        (adv.center_by_group(), (0.75, -0.25), (0.25, -0.75)),
        (adv.center_by_leave_one_out(), (0.857143, -0.285714), (0.285714, -0.857143)),
        (GRPO, (1.732051, -0.577350), (0.577350, -1.732051)),
        (
            chain(adv.center_by_group(), adv.scale_by_group_std(ddof=1)),
            (1.620185, -0.540062),
            (0.540062, -1.620185),
        ),
        (
            chain(adv.center_by_group(), adv.scale_by_focal_factor(1.0)),
            (0.5625, -0.1875),
            (0.0625, -0.1875),
        ),
        (
            chain(GRPO, adv.scale_by_focal_factor(0.5)),
            (1.5, -0.5),
            (0.288675, -0.866025),
        ),
        (
            chain(adv.center_by_group(), adv.scale_negative(2.0)),
            (0.75, -0.5),
            (0.25, -1.5),
        ),
    ],
    ids=["dr_grpo", "rloo", "grpo", "grpo_ddof_1", "power_2", "f_grpo", "asym_grpo"],
)
def test_golden_values_of_a_group_of_eight(transform, two, six):
    got = laws.apply(transform, fakes.solved(8, 2, 6))[0].advantage[:, (0, -1), 0]
    equal(got, two, six)


@pytest.mark.parametrize("transform", [GRPO, TORCH, adv.center_by_leave_one_out()])
def test_equal_rewards_give_exactly_zero(transform):
    # 0.1 has no exact mean of three in float32; the noise over its own standard
    # deviation would be an advantage of order 1.
    got = advantage(transform, [0.1, 0.1, 0.1], [7.3, 7.3, 7.3])
    chex.assert_trees_all_equal(got, jnp.zeros((2, 3)))


def test_nearly_equal_rewards_still_count():
    # verl's low-variance group: a threshold on the variance would silence it.
    got = advantage(GRPO, [1.0, 1.00001])
    equal(got, [-1, 1], atol=0.05)


def test_rows_that_are_no_members_get_the_baseline_without_shaping_it():
    # Members 1 and 0 have mean 1/2; with the failed row's 0 it would be 1/3.
    rows = fakes.rewards([1, 0, 0])
    failed = jnp.array([[False, False, True]])
    rows = rows.replace(verdict=rows.verdict.replace(failed=failed))
    credit, _ = laws.apply(adv.center_by_group(), rows)
    equal(credit.advantage[..., 0], [0.5, -0.5, -0.5])
    credit, _ = laws.apply(adv.center_by_leave_one_out(), rows)
    equal(credit.advantage[0, :2, 0], 1, -1)
    credit, _ = laws.apply(GRPO, rows)
    equal(credit.advantage[0, :2, 0], 1, -1)


@pytest.mark.parametrize(
    ("transform", "name"),
    [
        (adv.center_by_group(), "center_by_group"),
        (adv.center_by_leave_one_out(), "center_by_leave_one_out"),
        (adv.scale_by_group_std(ddof=1), "scale_by_group_std"),
    ],
)
def test_one_sample_has_no_group_baseline(transform, name):
    with pytest.raises(ValueError, match=rf"{name}\(\) needs .* raise num_samples"):
        advantage(transform, [1], [0])


@given(
    st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8),
    st.floats(0.25, 4, width=32),
    st.floats(-3, 3, width=32),
)
def test_grpo_does_not_see_scale_and_shift_of_the_rewards(rewards, scale, shift):
    rewards = np.round(np.asarray(rewards, np.float32), 1)
    first = advantage(GRPO, rewards)
    assert abs(float(jnp.sum(first))) < 1e-3
    second = advantage(GRPO, scale * rewards + shift)
    chex.assert_trees_all_close(second, first, atol=2e-3)


@given(st.integers(0, 8))
def test_rloo_is_the_centred_reward_over_the_share_of_the_others(count):
    reward = [1] * count + [0] * (8 - count)
    want = advantage(adv.center_by_group(), reward) * (8 / 7)
    chex.assert_trees_all_close(
        advantage(adv.center_by_leave_one_out(), reward), want, atol=1e-6
    )


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


# OPO, arXiv:2505.23585: b = sum(l r) / sum(l).


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


def test_noise_in_equal_rewards_does_not_become_an_advantage():
    for method in (
        adv.center_by_risk(2.0),
        chain(adv.center_by_group(), adv.scale_by_group_norm(1.0)),
        adv.center_by_quantile(0.4),
        adv.center_by_length(),
    ):
        got = advantage(method, [0.1, 0.1, 0.1], [0.7, 0.7, 0.7])
        chex.assert_trees_all_equal(got, jnp.zeros((2, 3)))


@pytest.mark.parametrize(
    "transform",
    [
        adv.center_by_quantile(0.4),
        adv.center_by_risk(2.0),
        adv.scale_by_group_norm(1.0),
        adv.assign_lead_of_best(),
    ],
)
def test_one_sample_is_too_few(transform):
    with pytest.raises(ValueError, match=r"\(\) needs .* raise num_samples"):
        advantage(transform, [1], [0])


def test_outsiders_get_the_members_baseline():
    # Own rewards 0, 0: baseline 0, so the demonstration with reward 1 has advantage 1.
    # Jointly the mean is 1/3. A group of equal members must not zero an outsider.
    _, rollout = group(
        [Row((0.5,), 0.0), Row((0.5,), 0.0), Row((0.5,), 1.0, DEMONSTRATION)]
    )
    own = adv.chain(adv.restrict_members(OWN), adv.center_by_group())
    credit, _ = own.update(adv.initial_credit(rollout), rollout, own.init())
    np.testing.assert_allclose(credit.advantage[0, :, 0], [0, 0, 1])
    joint = adv.center_by_group()
    credit, _ = joint.update(adv.initial_credit(rollout), rollout, ())
    np.testing.assert_allclose(credit.advantage[0, :, 0], [-1 / 3, -1 / 3, 2 / 3])


def test_single_members_keep_their_reward():
    # Prompt 1 has one row only, as its second has no token: verl's mean 0, deviation 1.
    _, rollout = group(
        [Row((0.5,), 1.0), Row((0.5,), 0.0)], [Row((0.5,), 3.0), Row(())]
    )
    transform = laws.MIXED_TRANSFORMS["skip_groups_of_one"]
    credit, _ = transform.update(adv.initial_credit(rollout), rollout, transform.init())
    half = np.sqrt(0.5)
    np.testing.assert_allclose(credit.advantage[:, 0, 0], [half, 3.0], rtol=1e-6)
