"""pass@k advantages against the enumeration of all subsets of a group."""

import itertools
import math

import chex
import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from rljax import advantage as adv
from rljax.advantage import chain, pass_at_k
from rljax.analysis import profile

pytestmark = pytest.mark.usefixtures("strict")

apply = laws.apply


def subsets(num_samples, k):
    return list(itertools.combinations(range(num_samples), k))


def by_enumeration(num_samples, k, value):
    """A_S, A_F: mean over the subsets with sample i of value(failures in it, i)."""
    A_S, A_F = np.zeros(num_samples + 1), np.zeros(num_samples + 1)
    for c in range(num_samples + 1):
        reward = np.array([1] * c + [0] * (num_samples - c))
        for i, column in ((0, A_S), (num_samples - 1, A_F)):
            if reward[i] == (column is A_S):
                values = [
                    value(reward[list(s)], reward[i], reward)
                    for s in subsets(num_samples, k)
                    if i in s
                ]
                column[c] = np.mean(values)
    return A_S, A_F


def best(chosen, own, group):
    return len(chosen) * chosen.max()


def best_without_own(chosen, own, group):
    others = chosen.sum() - own
    return len(chosen) * float(chosen.max() - (others > 0))


def normalised(chosen, own, group):
    k = len(chosen)
    every = np.array([group[list(s)].max() for s in subsets(len(group), k)])
    return 0.0 if every.std() == 0 else (chosen.max() - every.mean()) / every.std()


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(
    ("make", "value"),
    [
        (adv.assign_pkpo, best),
        (adv.assign_pkpo_minus_one, best_without_own),
        (adv.assign_pass_at_k_training, normalised),
    ],
)
def test_closed_forms_are_means_over_all_subsets(make, value, k):
    # Drawing with replacement, 1 - (1 - c/n)^k, would miss by a few per cent.
    got = profile.analytic(make(k), 6)
    A_S, A_F = by_enumeration(6, k, value)
    np.testing.assert_allclose([got.A_S, got.A_F], [A_S, A_F], atol=1e-5)


def test_pkpo_with_leave_one_out_as_in_the_maxrl_repository():
    # a q G / (G - 1) with a = C(6, 3) / C(7, 3) = 4/7 at c = 2.
    got = profile.analytic(adv.center_by_pkpo_leave_one_out(4), 8)
    a = 4 / 7
    np.testing.assert_allclose(
        [got.A_S[2], got.A_F[2]], [a * 0.75 * 8 / 7, -a * 0.25 * 8 / 7], rtol=1e-5
    )
    # Its slope at p = 1/4 is not pass@4's over 4, q^3 = .421875.
    np.testing.assert_allclose(profile.slope(got, 0.25), 0.482143, atol=1e-6)


def test_the_epsilon_of_pass_at_k_training_changes_the_sixth_digit():
    # With the code's 1e-6, .522232 and -.174077 at c = 2; without,
    # .522233 and -.174078.
    got = profile.analytic(adv.assign_pass_at_k_training(4, epsilon=1e-6), 8)
    exact = profile.analytic(adv.assign_pass_at_k_training(4), 8)
    assert 0 < exact.A_S[2] - got.A_S[2] < 3e-6
    np.testing.assert_allclose(got.A_S[2], 0.522232, atol=1e-6)
    np.testing.assert_allclose(got.A_F[2], -0.174077, atol=1e-6)
    np.testing.assert_allclose(exact.A_S[2], 0.522233, atol=1e-6)


def test_the_chance_of_a_subset_is_a_ratio_of_binomials():
    for part, total, k in itertools.product(range(9), range(9), range(5)):
        if part <= total:
            want = math.comb(part, k) / math.comb(total, k) if k <= total else 0.0
            got = pass_at_k.all_from(jnp.float32(part), jnp.float32(total), k)
            assert got == pytest.approx(want, abs=1e-6)


def test_the_best_sample_gets_its_lead():
    # SECONDARY code (verl grpo_passk): largest minus second largest, else 0.
    groups = [[0.2, 0.9, 0.5], [0, 1, 0], [1, 1, 0], [0, 0, 0]]
    want = [[0, 0.4, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    got, _ = apply(adv.assign_lead_of_best(), fakes.rewards(*groups))
    np.testing.assert_allclose(got.advantage[..., 0], want, atol=1e-6)
    # Optionally over the group's standard deviation: sqrt(2)/3 for one of three.
    scaled = chain(adv.scale_by_group_std(), adv.assign_lead_of_best())
    got, _ = apply(scaled, fakes.rewards([0, 1, 0]))
    np.testing.assert_allclose(
        got.advantage[0, :, 0], [0, 3 / math.sqrt(2), 0], rtol=1e-5
    )


@pytest.mark.parametrize(
    "make",
    [
        adv.assign_pkpo,
        adv.assign_pkpo_minus_one,
        adv.center_by_pkpo_leave_one_out,
        adv.assign_pass_at_k_training,
    ],
)
def test_k_must_fit_the_group(make):
    for k in (0, -1, 2.0):
        with pytest.raises(ValueError, match=r"k must (lie in|be an integer)"):
            make(k)
    with pytest.raises(ValueError, match=r"\(4\) needs at least 4 samples .* raise"):
        apply(make(4), fakes.solved(3, 1))


def test_groups_short_of_members_get_no_advantage():
    # Three of five members are left: no subset of four exists.
    rows = fakes.solved(5, 1, 1)
    failed = jnp.zeros((2, 5), bool).at[0, 3:].set(True)
    rows = rows.replace(verdict=rows.verdict.replace(failed=failed))
    for transform in (
        adv.assign_pkpo(4),
        adv.assign_pkpo_minus_one(4),
        adv.assign_pass_at_k_training(4),
    ):
        got = apply(transform, rows)[0].advantage
        chex.assert_tree_all_finite(got)
        assert bool(jnp.all(got[0] == 0)) and bool(jnp.any(got[1] != 0))
