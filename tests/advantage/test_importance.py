"""Rollout correction on published numbers: weights, rejections, metrics.

Numbers without another source follow by hand from w = e^d, d = log pi_old - log mu:
row products e^(sum d), geometric means e^(mean d), k2 = d^2 / 2, k3 = e^d - 1 - d,
Kish's (sum w)^2 / sum w^2. The rules are those of verl, OpenRLHF and TRL.
"""

import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from token_case import case, loss_of, weigh

from rljax import advantage as adv
from rljax import algorithms, loss, numerics
from rljax.advantage import chain, importance
from rljax.rollout.draw import truncate
from rljax.types import Missing

ROWS = [[0.1, -0.2, 0.3], [-1, 0.5, 0]]
TWO = case(np.ones((2, 3)), behaviour=ROWS, mask=[[1, 1, 1], [1, 1, 0]])
# Rejections on verl's side of the trap bound mu / pi_old.
INVERSE = lambda d, mask: importance.per_token(-d, mask)  # noqa: E731


def weights(case, *weighting):
    """Weights relative to 1, where they are not 0 by the mask."""
    credit = weigh(case, chain(*weighting))
    return np.asarray(credit.weight[0])[np.asarray(case.rollout.samples.mask[0])]


def kept(case, *weighting):
    return (weights(case, *weighting) > 0).astype(int).tolist()


SMALL = case(
    np.ones((1, 3)),
    np.log([[1.1, 1.3, 0.7]]),
    behaviour=np.log([[1.25, 0.8, 5]]),
)


def test_tis_truncates_each_tokens_ratio():
    np.testing.assert_allclose(
        weights(SMALL, adv.weigh_by_importance()), [1.25, 0.8, 2], rtol=1e-5
    )
    weighting = chain(adv.token_mean(), adv.weigh_by_importance())
    value, coefficient = loss_of(SMALL, loss.ppo_clip(0.2, 0.28), weighting)
    assert value == pytest.approx(-1.266333, abs=1e-5)
    want = np.array([[1.25 * 1.1, 0, 2 * 0.7]]) / 3
    np.testing.assert_allclose(coefficient, want, rtol=1e-5)


def test_any_algorithm_weighs_by_the_ratio_after_its_own_weighting():
    # The rows of TWO have 3 and 2 tokens: a mean over rows gives each 1/6 and 1/4.
    plain = algorithms.grpo()
    at_most = adv.weigh_by_importance(importance.truncate(1.2))
    cases = (importance.corrected(plain), importance.corrected(plain, at_most), plain)

    @jax.jit
    def both(rollout):
        found = []
        for made in cases:
            credits, state, metrics = made.credit(rollout, made.init())
            found.append((made.weigh(credits, rollout, state)[0][0].weight[0], metrics))
        return found

    shares = np.array([[1 / 6] * 3, [1 / 4, 1 / 4, 0]])
    ratios = np.exp(np.array(ROWS))
    (tis, metrics), (cut, _), (own, without) = both(TWO.rollout)
    np.testing.assert_allclose(tis, np.minimum(ratios, 2) * shares, rtol=1e-5)
    np.testing.assert_allclose(cut, np.minimum(ratios, 1.2) * shares, rtol=1e-5)
    np.testing.assert_allclose(own * np.ones((2, 3)), shares, rtol=1e-5)
    assert float(metrics["mismatch/gap_max"].value) == pytest.approx(1.0)
    assert "mismatch/gap_max" not in without


def test_the_sequence_form_truncates_the_product():
    whole = adv.weigh_by_importance(importance.untouched, importance.per_sequence)
    np.testing.assert_allclose(weights(SMALL, whole), [5] * 3, rtol=1e-5)
    cut = adv.weigh_by_importance(importance.truncate(2.0), importance.per_sequence)
    np.testing.assert_allclose(weights(SMALL, cut), [2] * 3, rtol=1e-5)


def test_icepop_drops_what_lies_outside():
    bound = importance.mask_outside(0.5, 4.0)
    got = weights(SMALL, adv.weigh_by_importance(bound))
    np.testing.assert_allclose(got, [1.25, 0.8, 0], rtol=1e-5)
    got = weights(SMALL, adv.weigh_by_importance(importance.clip(0.9, 4.0)))
    np.testing.assert_allclose(got, [1.25, 0.9, 4], rtol=1e-5)


def test_truncated_weights_and_their_normalisation():
    w = [1.10517092, 0.81873075, 1.34985881, 0.36787944, 1.64872127]
    cap = importance.truncate(1.3)
    raw = weights(TWO, adv.weigh_by_importance(importance.untouched))
    np.testing.assert_allclose(raw, w, rtol=1e-6)
    cut = weights(TWO, adv.weigh_by_importance(cap))
    np.testing.assert_allclose(cut, np.minimum(w, 1.3), rtol=1e-6)
    normal = weights(TWO, adv.weigh_by_normalised_importance(cap))
    want = [1.12962017, 0.83684320, 1.32875937, 0.37601789, 1.32875937]
    np.testing.assert_allclose(normal, want, rtol=1e-6)
    assert np.mean(cut) == pytest.approx(0.97835622, rel=1e-6)


def test_the_sequence_form_is_normalised_over_rows():
    cap = importance.truncate(1.0)
    got = weights(TWO, adv.weigh_by_normalised_importance(cap, importance.per_sequence))
    mean = (1 + 0.60653066) / 2  # a mean over tokens would be .8426
    np.testing.assert_allclose(got, [1 / mean] * 3 + [0.60653066 / mean] * 2, rtol=1e-6)


def test_row_ratios():
    d, mask = importance.mismatch(TWO.rollout), TWO.rollout.samples.mask
    got = importance.per_sequence(d, mask)[0, :, 0]
    np.testing.assert_allclose(got, [1.22140276, 0.60653066], rtol=1e-6)
    got = importance.geometric(d, mask)[0, :, 0]
    np.testing.assert_allclose(got, [1.06893911, 0.77880078], rtol=1e-6)
    got = importance.row_mean(importance.k3)(d, mask)[0, :, 0]
    np.testing.assert_allclose(got, [0.02458683, 0.25830036], rtol=1e-5)


@pytest.mark.parametrize(
    ("rejection", "want"),
    [
        # verl's k1 bounds .5_1.3 bound mu / pi_old: only e^1 is too large.
        (adv.reject(INVERSE, low=0.5, high=1.3), [1, 1, 1, 0, 1]),
        # The same numbers on w itself: another set.
        (adv.reject(importance.per_token, low=0.5, high=1.3), [1, 1, 0, 0, 0]),
        (adv.reject(importance.geometric, low=0.9, high=1.1), [1, 1, 1, 0, 0]),
        (adv.reject(importance.row_mean(importance.k3), high=0.1), [1, 1, 1, 0, 0]),
        # Largest k2 per row: .045 and .5; sums of k1: -.2 and .5.
        (adv.reject(importance.row_max(importance.k2), high=0.1), [1, 1, 1, 0, 0]),
        (adv.reject(importance.row_sum(importance.k1), high=-0.1), [1, 1, 1, 0, 0]),
        (adv.reject(importance.per_sequence, high=1.0), [0, 0, 0, 1, 1]),
    ],
)
def test_rejections(rejection, want):
    assert kept(TWO, rejection) == want


def test_all_rejections_must_pass_and_what_is_left_is_renormalised():
    both = (
        adv.reject(importance.per_token, high=1.3),
        adv.reject(INVERSE, high=1.3),
    )
    assert kept(TWO, *both) == [1, 1, 0, 0, 0]
    np.testing.assert_allclose(
        weights(TWO, *both, adv.token_mean()), [0.5, 0.5, 0, 0, 0]
    )
    np.testing.assert_allclose(
        weights(TWO, adv.token_mean(), *both), [0.2, 0.2, 0, 0, 0]
    )


def test_openrlhfs_sequence_mask_keeps_raw_ratios_and_the_divisor():
    recipe = algorithms.sequence_mask_tis(floor=0.9, cap=1.1)
    credits, state, _ = recipe.credit(TWO.rollout, recipe.init())
    credits, _, _ = recipe.weigh(credits, TWO.rollout, state)
    w = np.asarray(credits[0].weight[0])
    np.testing.assert_allclose(
        5 * w[0], [1.10517092, 0.81873075, 1.34985881], rtol=1e-6
    )
    np.testing.assert_array_equal(w[1], 0)


def test_mismatch_metrics():
    d, mask = importance.mismatch(TWO.rollout), TWO.rollout.samples.mask
    got = importance.mismatch_metrics(d, mask)
    want = {
        "kl_k1": 0.06,
        "kl_k3": 0.11807224,
        "chi_squared": 0.31349174,
        "chi_squared_sequence": -0.07014793,
        "perplexity_ratio": 1.10976620,
        "effective_share": 0.85232120,
        "effective_share_sequence": 1.79670546 / 2,
        "gap_max": 1.0,
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(value, rel=1e-5, abs=1e-7), name
    # verl clamps w to [1/C, C] before Kish's formula, C = 2; Kish's count is 4.2616.
    clamped = importance.mismatch_metrics(jnp.clip(d, -np.log(2), np.log(2)), mask)
    assert float(clamped["effective_share"]) == pytest.approx(0.88005882, rel=1e-6)
    assert 5 * float(got["effective_share"]) == pytest.approx(4.26160601, rel=1e-6)


def test_a_batch_without_mismatch_is_left_alone():
    even = case(np.ones((2, 3)), behaviour=0.0)
    for transform in (
        adv.weigh_by_importance(),
        adv.weigh_by_normalised_importance(importance.truncate(2.0)),
        adv.reject(importance.geometric, low=0.999, high=1.001),
    ):
        np.testing.assert_allclose(weights(even, transform), 1.0)


def test_demonstrations_have_no_behaviour_and_say_so():
    rows = fakes.rollout()
    missing = Missing("samples.behaviour", "only a sampler supplies it")
    rows = rows.replace(samples=rows.samples.replace(behaviour=missing))
    with pytest.raises(ValueError, match="only a sampler"):
        laws.apply(adv.weigh_by_importance(), rows)


def test_bypass_mode_takes_the_behaviour_for_the_old_policy():
    # pi / mu = rho pi_old / mu = 1.1 * 1.25 and so on.
    ratios = np.array([[1.1 * 1.25, 1.3 * 0.8, 0.7 * 5]])
    fn = loss.against_behaviour(loss.unclipped_ratio())
    np.testing.assert_allclose(3 * loss_of(SMALL, fn)[1], ratios, rtol=1e-5)
    reinforce = loss.against_behaviour(loss.cispo(cap=2.0))
    np.testing.assert_allclose(
        3 * loss_of(SMALL, reinforce)[1], np.minimum(ratios, 2), rtol=1e-5
    )


@pytest.mark.parametrize(
    ("top_p", "kept_mass", "logp"),
    [
        (0.8, 0.88079708, [-0.31326169, -1.31326169]),
        (0.6, 0.64391426, [0.0]),
        (1.0, 1.0, [-0.44018970, -1.44018970]),
    ],
)
def test_mu_is_what_truncation_leaves(top_p, kept_mass, logp):
    # log mu = log pi - log kept: a ratio that forgot the truncation is off by it.
    logits, tokens = jnp.array([2.0, 1, 0, -1]), jnp.arange(len(logp))
    left, kept = truncate(logits, None, top_p)
    got, _ = numerics.logp_and_entropy(jnp.tile(left, (len(logp), 1)), tokens)
    np.testing.assert_allclose(got, logp, atol=1e-6)
    assert float(kept) == pytest.approx(kept_mass, abs=1e-6)


def test_bounds_in_the_wrong_order_are_refused():
    for make in (
        lambda: importance.clip(2.0, 1.0),
        lambda: importance.mask_outside(2.0, 1.0),
        lambda: adv.reject(importance.geometric, low=2.0, high=1.0),
    ):
        with pytest.raises(ValueError, match="low <= high"):
            make()
