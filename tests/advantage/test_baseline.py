"""Group baselines against hand-computed and published numbers."""

import chex
import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rljax import advantage as adv
from rljax.advantage import chain

pytestmark = pytest.mark.usefixtures("strict")

GRPO = chain(adv.center_by_group(), adv.scale_by_group_std())
TORCH = chain(adv.center_by_group(), adv.scale_by_group_std(ddof=1, epsilon=1e-6))


def advantage(transform, *groups):
    """f32[P, G] from one list of rewards per prompt."""
    return laws.apply(transform, fakes.rewards(*groups))[0].advantage[..., 0]


def equal(got, *groups, atol=2e-6):
    chex.assert_trees_all_close(got, jnp.asarray(groups, jnp.float32), atol=atol)


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


def test_the_focal_factor_of_a_solved_group_is_one_only_for_exponent_zero():
    # 0^0 = 1 keeps alpha = 1 equal to Dr. GRPO; NaN would poison the batch.
    p = jnp.array([1.0, 1.0, 0.0])
    got = adv.baseline.focal_factor(p, jnp.array([0.0, 2.0, 2.0]))
    chex.assert_trees_all_equal(got, jnp.array([1.0, 0.0, 1.0]))


def test_focal_reads_the_reward_and_not_the_shaped_advantage():
    # p = 1/4 though the advantages were shifted before: (3/4)^1 (1 + 9).
    shift = adv.stateless(lambda c, r: c.replace(advantage=c.advantage + 9))
    got = advantage(chain(shift, adv.scale_by_focal_factor(1.0)), [1, 0, 0, 0])
    equal(got, [7.5, 6.75, 6.75, 6.75])
