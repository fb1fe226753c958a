"""Advantages that depend on the rest of the batch or on the batches before it."""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import algorithms as al
from rljax.advantage import chain
from rljax.analysis import profile

pytestmark = pytest.mark.usefixtures("strict")

apply = jax.jit(laws.apply, static_argnums=0)  # op by op, compiling takes minutes

GROUP_MEAN = adv.center_by_group()


def advantage(transform, *groups):
    """f32[P, G] from one list of rewards per prompt."""
    return apply(transform, fakes.rewards(*groups))[0].advantage[..., 0]


# REINFORCE++, arXiv:2501.03262: (r - mean) / std of all tokens of the batch. Rewards
# 1, 0, 1, 1 have mean 3/4 and deviation sqrt(3)/4 (population) or 1/2 (Bessel).


@pytest.mark.parametrize(
    ("ddof", "want"),
    [(0, [0.577350, -1.732051, 0.577350, 0.577350]), (1, [0.5, -1.5, 0.5, 0.5])],
    ids=["population_as_OpenRLHF", "Bessel_as_verl"],
)
def test_reinforce_plus_plus_whitens_over_the_batch(ddof, want):
    # Groups [1, 0] and [1, 1]: a mean per group would give 0 in the second.
    got = advantage(adv.whiten_by_batch(ddof=ddof), [1, 0], [1, 1])
    np.testing.assert_allclose(got.ravel(), want, atol=2e-6)


@pytest.mark.parametrize(("ddof", "want"), [(0, 1.414214), (1, 1.224745)])
def test_its_baseline_variant_centres_by_group_first(ddof, want):
    method = chain(GROUP_MEAN, adv.whiten_by_batch(ddof=ddof))
    got = advantage(method, [1, 0], [1, 1])
    np.testing.assert_allclose(got, [[want, -want], [0, 0]], atol=2e-6)


@pytest.mark.parametrize(("count", "num_groups"), [(2, 2), (6, 8)])
def test_reinforce_plus_plus_golden_values(count, num_groups):
    # G = 8 in a batch of mean .4 and deviation .45: 1.333333, -.888889. Rewards of the
    # other groups are chosen to give that mean and deviation.
    n, rest = 8 * num_groups, 8 * (num_groups - 1)
    mean = (0.4 * n - count) / rest
    square = ((0.45**2 + 0.4**2) * n - count) / rest
    d = np.sqrt(square - mean**2)
    others = [[mean + d] * 4 + [mean - d] * 4] * (num_groups - 1)
    got = advantage(adv.whiten_by_batch(), [1] * count + [0] * (8 - count), *others)
    np.testing.assert_allclose(got[0, 0], 1.333333, atol=1e-5)
    np.testing.assert_allclose(got[0, 7], -0.888889, atol=1e-5)


def test_whitening_counts_tokens_or_rows():
    # Rewards 1 and 0 of lengths 3 and 1: mean 3/4 over tokens, 1/2 over rows.
    rows = fakes.rollout(1, 2, 4, reward=[[1, 0]], length=[[3, 1]])
    tokens, _ = apply(adv.whiten_by_batch(), rows)
    np.testing.assert_allclose(
        tokens.advantage[0, :, 0], [0.57735, -1.73205], atol=1e-5
    )
    per_row, _ = apply(adv.whiten_by_batch(share_fn=adv.by_row), rows)
    np.testing.assert_allclose(per_row.advantage[0, :, 0], [1, -1], atol=1e-5)


def test_a_batch_of_equal_rewards_whitens_to_exactly_zero():
    # The noise of its mean over the root of the floor would be 1e-4, which Adam takes
    # for a gradient like any other.
    got = advantage(adv.whiten_by_batch(), [0.1] * 3, [0.1] * 3, [0.1] * 3)
    chex.assert_trees_all_equal(got, jnp.zeros((3, 3)))


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


def test_the_baseline_variant_is_balanced_and_the_other_is_not():
    # In a batch of mean 1/2 an easy group is pushed up without it.
    company = (1, 3, 7, 5)
    centred = al.reinforce_plus_plus_baseline()
    got = profile.analytic(profile.advantage_of(centred), 8, company=company)
    np.testing.assert_allclose(got.m_S, got.m_F, atol=1e-5)
    plain = profile.advantage_of(al.reinforce_plus_plus())
    got = profile.analytic(plain, 8, company=company)
    assert np.all(np.diff(got.m_S - got.m_F) > 0)
    np.testing.assert_allclose(got.m_S[4], got.m_F[4], atol=1e-5)


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
    return transform.update(adv.initial_credit(rows), state, rows)


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
        credit, state = transform.update(adv.initial_credit(rows), state, rows)
        return state, credit.advantage

    state, _ = jax.lax.scan(one, laws.init(transform), length=12)
    assert state[1].step == 12
    np.testing.assert_array_equal(state[1].counts.sum(0), [0, 10, 10, 10, 0])


def test_curve_rl_needs_the_number_of_samples():
    with pytest.raises(ValueError, match=r"pass G as num_samples"):
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
