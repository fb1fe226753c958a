"""GAE over masks with holes, value loss and explained variance on published numbers.

Numbers without another source follow by hand from

    delta_t = r_t + gamma V_next - V_t,   A_t = delta_t + gamma lambda A_next

(arXiv:1506.02438), "next" being the next token the policy answers for. So, with gamma
.9 and lambda .8: A_5 = 1 - .8 = .2, A_4 = .9 * .8 - .7 + .72 * .2 = .164, and so on.
"""

import chex
import fakes
import hypothesis
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from hypothesis import strategies as st
from token_case import case, loss_of

from rljax import advantage as adv
from rljax import algorithms, loss
from rljax import algorithms as al
from rljax.advantage import chain
from rljax.advantage.gae import explained_variance, gae, token_reward
from rljax.types import NotMeasured

MASK = np.array([1, 1, 0, 1, 1], bool)


REWARD = np.array([0, 0, 0, 0, 1.0])


VALUE = np.array([0.5, 0.6, 9, 0.7, 0.8])


_gae = jax.jit(gae)


def estimate(reward, value, mask, gamma, lam, bootstrap=0.0):
    arrays = np.float32(reward), np.float32(value), np.asarray(mask, bool)
    numbers = np.float32(gamma), np.float32(lam), np.float32(bootstrap)
    return [np.asarray(x) for x in _gae(*arrays, *numbers)]


def whitened(advantage, mask):
    mask = jnp.asarray(mask, bool)[None, None]
    credit = fakes.credit_of(fakes.rollout(1, 1, mask.shape[-1]), [[0.0]])
    credit = credit.replace(
        advantage=jnp.asarray(advantage)[None, None], weight=mask.astype(jnp.float32)
    )
    return adv.whiten_by_batch(ddof=1).update(credit, None, ())[0].advantage[0, 0]


def test_a_hole_costs_no_discount():
    a, returns = estimate(REWARD, VALUE, MASK, 0.9, 0.8)
    np.testing.assert_allclose(a, [0.1466176, 0.14808, 0, 0.164, 0.2], atol=1e-6)
    np.testing.assert_allclose(returns, [0.6466176, 0.74808, 0, 0.864, 1], atol=1e-6)
    got = np.asarray(whitened(a, MASK))[MASK]
    want = [-0.72717417, -0.66828115, -0.02715909, 1.42261441]
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_openrlhf_lets_a_hole_cost_gamma_and_a_value_of_zero():
    a, _ = estimate(REWARD * MASK, VALUE * MASK, np.ones(5), 0.9, 0.8)
    np.testing.assert_allclose(
        a[MASK], [-0.00419533, -0.0613824, 0.164, 0.2], rtol=1e-5
    )


def test_without_discount_it_is_the_return_minus_the_value():
    a, _ = estimate(REWARD, VALUE, MASK, 1.0, 1.0)
    np.testing.assert_allclose(a, [0.5, 0.4, 0, 0.3, 0.2], atol=1e-6)


@pytest.mark.parametrize(
    ("bootstrap", "want"),
    [(0.8, [0.071968, 0.0444, 0.02]), (0.0, [-0.30128, -0.474, -0.7])],
)
def test_a_cut_row_may_take_the_value_of_its_last_state(bootstrap, want):
    value = [0.5, 0.6, 0.7]
    a, _ = estimate(np.zeros(3), value, np.ones(3), 0.9, 0.8, bootstrap)
    np.testing.assert_allclose(a, want, atol=1e-6)


@pytest.mark.parametrize(
    ("lam", "want"),
    [
        (1.0, [[-1.451188, -4.455746, 2.539651, 0.5249, -0.49], [3, 2, 1, 0, -4.9]]),
        (
            0.7,
            [
                [-0.676979, -5.248167, 2.484608, 0.670430, -0.49],
                [2.2899, 1.73, 1, 0, -4.9],
            ],
        ),
        (
            0.4,
            [
                [0.567319, -6.042124, 2.343120, 0.815960, -0.49],
                [1.7256, 1.46, 1, 0, -4.9],
            ],
        ),
    ],
)
def test_rlaxs_numbers(lam, want):
    # rlax multistep_test.py, float64 values: the sixth value is the bootstrap; the
    # second row ends an episode by a discount of 0.
    reward = [[0, 0, 1, 0, -0.5], [0.0, 0, 0, 0, 1]]
    value = np.array([[1, 4, -3, -2, -1, -1], [-3, -2, -1, 0, 5, -1.0]])
    gamma = np.array([[0.99] * 5, [0.9, 0.9, 0.9, 0, 0.9]])
    mask = np.ones((2, 5))
    a, _ = estimate(reward, value[:, :-1], mask, gamma, lam, value[:, -1:])
    np.testing.assert_allclose(a, want, atol=2e-5)


@pytest.mark.parametrize(
    ("gamma", "lam", "returns"),
    [
        (1.0, 1.0, [6, 5, 3]),
        (1.0, 0.5, [3.625, 4.25, 3]),
        (0.5, 1.0, [2.75, 3.5, 3]),
    ],
)
def test_skyrls_numbers(gamma, lam, returns):
    # SkyRL tests/backends/skyrl_train/utils/test_ppo_utils.py: r = 1, 2, 3. Recursion
    # over all tokens: theirs ignores the mask.
    a, got = estimate([1.0, 2, 3], [0.5, 1, 1.5], np.ones(3), gamma, lam)
    np.testing.assert_allclose(got, returns, rtol=1e-6)
    if gamma == lam == 1:  # whitened with masked mean and n - 1; position 2 not zeroed
        white = whitened(a, [1, 0, 1])
        np.testing.assert_allclose(white, [0.7071, 0.1768, -0.7071], atol=1e-4)


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_holes_are_as_if_they_were_not_there(seed):
    draw = np.random.default_rng(seed)
    mask = draw.random(8) < 0.6
    reward, value = draw.normal(size=(2, 8)).astype(np.float32)
    gamma, lam = draw.random(2)
    a, returns = estimate(reward, value, mask, gamma, lam, 0.3)
    want = np.zeros(8)
    after, later = 0.3, 0.0
    for t in reversed(np.flatnonzero(mask)):
        later = reward[t] + gamma * after - value[t] + gamma * lam * later
        want[t], after = later, value[t]
    np.testing.assert_allclose(a, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(returns, want + value * mask, rtol=1e-4, atol=1e-5)


def test_the_reward_sits_on_the_last_token_the_policy_answers_for():
    # verl loses a reward that falls on a masked position.
    rows = case([[1], [2], [3]], mask=[[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    credit = rows.credit.replace(advantage=rows.credit.advantage[..., :1])
    want = [[0, 1, 0], [0, 0, 2], [0, 0, 0]]
    assert token_reward(credit, rows.rollout)[0].tolist() == want


def with_values(rollout):
    old = rollout.old.replace(extra={"value": rollout.old.entropy})
    return rollout.replace(old=old)


def test_advantage_and_target_of_one_rollout_fit_together():
    rows = with_values(fakes.rollout())
    a, target = (
        laws.apply(t, rows)[0]
        for t in (adv.assign_gae(0.9, 0.8), adv.assign_value_target(0.9, 0.8))
    )
    mask = rows.samples.mask
    np.testing.assert_allclose(
        jnp.where(mask, target.advantage - a.advantage, 0.0),
        jnp.where(mask, rows.old.entropy, 0.0),
        rtol=1e-5,
    )


def test_values_nobody_measured_are_named():
    with pytest.raises(NotMeasured, match="measure_old"):
        laws.apply(adv.assign_gae(), fakes.rollout())
    with pytest.raises(NotMeasured, match="value head"):
        rows = with_values(fakes.rollout())
        loss.value_loss()(rows.current, fakes.credit_of(rows, [[0.0] * 4] * 3), rows)


def value_case():
    rows = case([[1, 1, 0.4]])
    value = jnp.array([[[1, 0.2, 0.9]]])
    old = rows.rollout.old.replace(extra={"value": jnp.full((1, 1, 3), 0.5)})
    now = rows.rollout.current.replace(extra={"value": value})
    return rows._replace(rollout=rows.rollout.replace(old=old, current=now)), value


@pytest.mark.parametrize(
    ("clip", "want", "slope"),
    [
        (0.2, 0.16333333, [0, -0.26666667, 0.16666667]),
        (jnp.inf, 0.14833333, [0, -0.26666667, 0.16666667]),
    ],
)
def test_the_value_loss_takes_the_larger_error(clip, want, slope):
    rows, value = value_case()
    fn = loss.value_loss(clip)
    assert loss_of(rows, fn)[0] == pytest.approx(want, abs=1e-6)

    def total(value):
        now = rows.rollout.current.replace(extra={"value": value})
        return jnp.mean(fn(now, rows.credit, rows.rollout))

    np.testing.assert_allclose(jax.grad(total)(value)[0, 0], slope, atol=1e-6)
    # Clipped: the first token alone, whose clipped value .7 is further from 1.
    bounded = (jnp.clip(value, 0.3, 0.7) - rows.credit.advantage) ** 2
    clipped = bounded > (value - rows.credit.advantage) ** 2
    assert clipped[0, 0].tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("value", "want"),
    [
        ([0.8, 0.3, 0.6, 0.9], 0.65333333),
        ([3.8, 3.3, 3.6, 3.9], 0.65333333),
        ([0.75] * 4, 0.0),
        ([0.2, 0.9, 0.1, 0.3], -1.91666667),
    ],
)
def test_explained_variance(value, want):
    # verl adds 1e-5 to a sample variance: .65334720 for the first.
    target, value = jnp.array([1.0, 0, 1, 1, 9]), jnp.array([*value, 5])
    mask = jnp.array([1, 1, 1, 1, 0], bool)
    got = explained_variance(target, value, mask)
    assert float(got) == pytest.approx(want, abs=1e-5)
    left = np.var((target - value)[:4], ddof=1)
    if want > 0:
        verl = 1 - left / (np.var(target[:4], ddof=1) + 1e-5)
        assert verl == pytest.approx(0.65334720, abs=1e-6)


def test_explained_variance_of_constant_targets_is_zero():
    # CleanRL: NaN.
    got = explained_variance(jnp.ones(3), jnp.arange(3.0), jnp.ones(3, bool))
    assert float(got) == 0


def test_ppo_learns_from_rewards_and_values():
    # One gradient of the whole recipe: both terms push, everything stays finite.
    rows = with_values(fakes.rollout())
    now = rows.current.replace(extra={"value": rows.current.entropy})
    for recipe in (algorithms.ppo(), algorithms.turn_ppo()):
        credits, state, metrics = jax.jit(recipe.credit)(rows, recipe.init())
        credits, _, _ = jax.jit(recipe.weigh)(credits, rows, state)
        grads = jax.jit(jax.grad(recipe.loss))(now, credits, rows)
        for g in (grads.logp, grads.extra["value"]):
            inside = np.asarray(g)[np.asarray(rows.samples.mask)]
            assert np.isfinite(inside).all() and np.abs(inside).max() > 0
        assert "value/explained_variance" in metrics


pytestmark = pytest.mark.usefixtures("strict")


apply = laws.apply


@pytest.mark.parametrize(
    ("discount", "mask", "want"),
    [
        # SkyRL tests/backends/skyrl_train/utils/test_ppo_utils.py, r = [1, 2, 3]; at
        # the token outside the mask SkyRL leaves its own reward, here it is 0.
        (1.0, [1, 1, 0], [3, 2, 0]),
        (0.5, [1, 1, 1], [2.75, 3.5, 3]),
        (0.5, [1, 1, 0], [2, 2, 0]),
        # A hole: SkyRL would end the sum there and give the first token 1.
        (1.0, [1, 0, 1], [4, 0, 3]),
        (0.5, [1, 0, 1], [2.5, 0, 3]),
    ],
)
def test_returns_to_go(discount, mask, want):
    rows = fakes.rollout(1, 1, 3)
    mask = jnp.asarray([[mask]], bool)
    rows = rows.replace(samples=rows.samples.replace(mask=mask))
    reward = adv.stateless(
        lambda c, r: c.replace(advantage=jnp.array([[[1.0, 2.0, 3.0]]]))
    )
    credit, _ = apply(chain(reward, adv.assign_return_to_go(discount)), rows)
    np.testing.assert_allclose(credit.advantage[0, 0], want)


def test_a_reward_per_row_is_paid_at_its_last_token():
    rows = fakes.rollout(1, 2, 3, reward=[[1, 2]], length=[[3, 2]])
    credit, _ = apply(adv.assign_return_to_go(0.5), rows)
    np.testing.assert_allclose(credit.advantage[0], [[0.25, 0.5, 1], [1, 2, 0]])


def test_without_discount_the_return_is_the_reward():
    # So the recipe is the whitened reward, whatever the lengths.
    rows = fakes.rollout(3, 4, 5)
    whole = al.reinforce_plus_plus()
    got = whole.credit(rows, whole.init())[0][0].advantage
    want = apply(adv.whiten_by_batch(), rows)[0].advantage
    mask = rows.samples.mask
    chex.assert_trees_all_close(
        jnp.where(mask, got, 0), jnp.where(mask, want, 0), atol=1e-5
    )
