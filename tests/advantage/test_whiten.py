"""Whitening over the batch, and what it does to a group's masses."""

import chex
import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import algorithms as al
from rljax.advantage import chain
from rljax.analysis import profile

pytestmark = pytest.mark.usefixtures("strict")


apply = laws.apply


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
