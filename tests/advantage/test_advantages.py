"""Advantages of a group's rewards: by hand, and as peers have them."""

import math

import chex
import fakes
import jax.numpy as jnp
import numpy as np
import pytest
from group_recipes import advantage, apply, equal

from rljax import advantage as adv
from rljax import algorithms as al
from rljax.advantage import chain
from rljax.types import Source

pytestmark = pytest.mark.usefixtures("strict")


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
