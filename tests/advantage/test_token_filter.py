"""STAPO, 20-Entropy, Clip-Cov and KL-Cov on published numbers and by their laws.

Numbers without another source follow by hand from the rules of STAPO (2602.15620),
20-Entropy (2506.01939), Clip-Cov and KL-Cov (2505.22617), as the comments show.
"""

import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from token_case import case, loss_of, weigh

from rljax import advantage as adv
from rljax import loss
from rljax.advantage import chain, order, token_filter
from rljax.learn.gradient import of_minibatch
from rljax.learn.microbatch import Pieces
from rljax.types import TokenStats, TrainState

STAPO = case(
    [[1, 1, 1, 1, 1, -1, -1]],
    np.log([[1, 1.1, 1.4, 1, 0.9, 1, 1.3]]),
    logp=np.log([[0.9, 0.001, 0.0015, 0.0005, 0.3, 0.001, 0.5]]),
    entropy=[[0.1, 0.05, 0.65, 0.2, 1.5, 0.05, 0.7]],
)
# The old policy's clip: token 3 (1.4 > 1.28) has no gradient, token 7 (A < 0) keeps it.
CLIP = loss.ppo_clip(0.2, 0.28)


def kept(case, transform):
    return (np.asarray(weigh(case, transform).weight[0]) > 0).astype(int).tolist()


def test_without_silencing_the_objective_is_dapos():
    value, coefficient = loss_of(STAPO, CLIP)
    assert -value == pytest.approx(0.425714, abs=1e-6)
    want = np.array([1, 1.1, 0, 1, 0.9, -1, -1.3]) / 7
    np.testing.assert_allclose(coefficient[0], want, rtol=1e-5)


def test_stapo_silences_the_certain_among_the_rare_and_rewarded():
    # C = tokens 2, 3, 4 with entropies .05, .65, .2: quantile 0.75 is 0.425.
    silence = adv.silence_spurious()
    assert kept(STAPO, silence) == [[1, 0, 1, 0, 1, 1, 1]]
    value, coefficient = loss_of(STAPO, CLIP, chain(silence, adv.token_mean()))
    assert -value == pytest.approx(0.176, abs=1e-6)
    want = np.array([1, 0, 0, 0, 0.9, -1, -1.3]) / 5
    np.testing.assert_allclose(coefficient[0], want, rtol=1e-5)
    rare = order.quantile_of_all(
        STAPO.rollout.current.entropy,
        jnp.array([[[0, 1, 1, 1, 0, 0, 0]]], bool),
        0.75,
    )
    assert float(rare) == pytest.approx(0.425)


def test_stapo_v1_takes_the_quantile_over_all_tokens():
    # The 0.8 quantile of all seven entropies is 0.69: token 3 goes, too.
    silence = adv.silence_spurious(
        entropy_quantile=0.8, population_fn=token_filter.all_tokens
    )
    assert kept(STAPO, silence) == [[1, 0, 0, 0, 1, 1, 1]]
    value, _ = loss_of(STAPO, CLIP, chain(silence, adv.token_mean()))
    assert -value == pytest.approx(-0.1, abs=1e-6)


@pytest.mark.parametrize("logp", [np.log(0.5), [[np.log(0.001), -0.1]]])
def test_stapo_silences_nothing_when_no_or_one_token_is_rare(logp):
    # One candidate's quantile is its own entropy, and the inequality is strict.
    lone = case([[1, 1]], logp=logp, entropy=0.01)
    assert kept(lone, adv.silence_spurious()) == [[1, 1]]


def test_the_norm_of_the_logit_gradient_lies_between_stapos_bounds():
    # pi = (.7, .2, .1), token 2, w = 1: H = .801819, C_V = .552357.
    pi, w = np.array([0.7, 0.2, 0.1]), 1.0
    grad = jax.grad(lambda a: w * jax.nn.log_softmax(a)[2])(jnp.log(jnp.asarray(pi)))
    exact = w**2 * (1 - 2 * pi[2] + np.sum(pi**2))
    entropy = -np.sum(pi * np.log(pi))
    c_v = 2 / (3 * np.log(3) ** 2)
    assert float(jnp.sum(grad**2)) == pytest.approx(exact, rel=1e-5)
    assert exact == pytest.approx(1.34)
    assert entropy == pytest.approx(0.801819, abs=1e-6)
    assert c_v == pytest.approx(0.552357, abs=1e-6)
    assert 1 - 2 * pi[2] + np.exp(-entropy) == pytest.approx(1.248513, abs=1e-6)
    assert 2 - 2 * pi[2] - c_v * entropy**2 == pytest.approx(1.444883, abs=1e-6)


TOP = adv.keep_top_entropy(0.2)


@pytest.mark.parametrize(
    ("weighting", "objective"),
    [
        # The authors' code divides by the 2 selected tokens, the equation by all 7.
        (chain(TOP, adv.token_mean()), -0.2),
        (chain(adv.token_mean(), TOP), -0.057143),
    ],
)
def test_twenty_entropys_two_divisors(weighting, objective):
    assert kept(STAPO, TOP) == [[0, 0, 0, 0, 1, 0, 1]]
    value, _ = loss_of(STAPO, CLIP, weighting)
    assert -value == pytest.approx(objective, abs=1e-6)


def test_the_quantile_rule_selects_the_same_tokens_here():
    # Threshold 0.69.
    rule = adv.keep_top_entropy(0.2, token_filter.by_quantile)
    assert kept(STAPO, rule) == [[0, 0, 0, 0, 1, 0, 1]]


RISING = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.7, 0.8, 0.9, 1.0, 1.1, 1.2]]
MIXED = [[0.1, 0.2, 0.3, 1.4, 0.5, 0.14], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]]
TEN = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
EIGHT = [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("entropy", "mask", "quantile", "want"),
    [
        # trl tests/test_grpo_trainer.py TestGetHighEntropyMask; their threshold is our
        # 1 - fraction, and padding takes no part.
        (RISING, TEN, 0.8, [[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0]]),
        (MIXED, EIGHT, 0.8, [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0]]),
        (RISING, TEN, 0.5, [[0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0]]),
        (RISING, TEN, 0.0, TEN),
        (RISING, TEN, 1.0, [[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]]),
        (RISING, np.zeros((2, 6)), 0.5, np.zeros((2, 6), int).tolist()),
    ],
)
def test_trls_tables_of_the_entropy_mask(entropy, mask, quantile, want):
    valid = jnp.asarray(mask)[None] > 0
    got = token_filter.by_quantile(jnp.asarray(entropy)[None], valid, 1 - quantile)
    assert got[0].astype(int).tolist() == want


COV = case(
    [[1, 1, -1, -1]],
    np.log([[1.1, 1, 0.9, 1.2]]),
    logp=[[-0.1, -0.5, -2, -3]],
)


def test_the_covariance_is_that_of_logp_and_advantage():
    got = token_filter.covariance(COV.credit, COV.rollout)
    np.testing.assert_allclose(got[0, 0], [1.3, 0.9, 0.6, 1.6], rtol=1e-6)


def test_kl_cov_penalises_the_token_of_largest_covariance():
    # N = 4 and any small fraction: one token, the fourth; ln 1.2 = .182322.
    plain, coefficient = loss_of(COV, loss.unclipped_ratio())
    assert plain == pytest.approx(0.0, abs=1e-6)
    select = chain(adv.token_mean(), adv.keep_covariant(2e-3))
    penalty, pull = loss_of(COV, loss.against_old(loss.kl_absolute()), select)
    assert plain + penalty == pytest.approx(0.045580, abs=1e-6)
    np.testing.assert_allclose(
        coefficient + pull, [[1.1 / 4, 1 / 4, -0.9 / 4, -1.2 / 4 - 1 / 4]], rtol=1e-5
    )


def test_kl_covs_penalty_is_inert_on_policy():
    # The equation's KL would be too, but only in expectation: here per token.
    on_policy = case([[1, 1, -1, -1]], 0.0, logp=[[-0.1, -0.5, -2, -3]])
    select = chain(adv.token_mean(), adv.keep_covariant(1.0))
    _, pull = loss_of(on_policy, loss.against_old(loss.kl_absolute()), select)
    np.testing.assert_array_equal(pull, 0)


def nothing_clipped(credit, rollout):
    return jnp.zeros(credit.weight.shape, bool)


def test_clip_cov_drops_tokens_of_the_band_and_keeps_the_divisor():
    # Band (1, 5): tokens 1 and 4, both drawn as n = 2; the mean stays over 4 tokens.
    drop = adv.drop_covariant(fraction=0.5, clipped_fn=nothing_clipped)
    value, coefficient = loss_of(
        COV, loss.ppo_clip(1.0, 1.0), chain(adv.token_mean(), drop)
    )
    assert value == pytest.approx(-0.025, abs=1e-6)
    np.testing.assert_allclose(coefficient, [[0, 0.25, -0.225, 0]], rtol=1e-5)


def test_clip_cov_draws_one_token_at_least_and_none_that_is_clipped():
    one = adv.drop_covariant(fraction=2e-4, clipped_fn=nothing_clipped)
    assert np.sum(kept(COV, one)) == 3
    clipped = adv.drop_covariant(
        fraction=0.5, clipped_fn=lambda c, r: r.current.logp < -2.5
    )
    assert kept(COV, clipped) == [[0, 1, 1, 1]]


@jax.jit
def _drawn(rollout, count, seed):
    drop = adv.drop_covariant(
        fraction=0.3, low=-9.0, high=9.0, clipped_fn=nothing_clipped, seed=seed
    )
    credit, state = drop.update(adv.initial_credit(rollout), rollout, count)
    return (adv.initial_credit(rollout).weight > 0) & (credit.weight == 0), state


def drawn(rollout, count, seed=0):
    dropped, state = _drawn(rollout, jnp.int32(count), seed)
    assert int(state) == count + 1
    return np.asarray(dropped)


def test_clip_covs_draw_follows_the_samples_identity():
    # Neither order nor padding may change what is drawn; update and seed must.
    rows = fakes.rollout(4, 4, 6)
    first = drawn(rows, 0)
    turned = jax.tree.map(lambda x: x[::-1], rows)
    np.testing.assert_array_equal(drawn(turned, 0), first[::-1])
    padded = drawn(fakes.pad_tokens(rows, by=3), 0)
    np.testing.assert_array_equal(padded[..., :6], first)
    assert (drawn(rows, 1) != first).any() and (drawn(rows, 0, seed=1) != first).any()
    assert np.sum(first) == np.floor(0.3 * np.sum(rows.samples.mask))


def test_clip_cov_draws_uniformly():
    # 24 updates of 10 tokens, 3 drawn each: every token some times, none always.
    rows = fakes.rollout(1, 2, 5, length=[[5, 5]])
    times = sum(drawn(rows, i)[0].astype(int) for i in range(24))
    assert times.sum() == 72 and times.min() >= 2 and times.max() <= 15


def test_a_population_may_trace_the_seed():
    rows = fakes.rollout(4, 4, 6)
    many, _ = jax.vmap(_drawn, (None, None, 0))(rows, jnp.int32(0), jnp.arange(3))
    for seed in range(3):
        np.testing.assert_array_equal(many[seed], drawn(rows, 0, seed=seed))


def table_policy(params, prompts, samples, reference=None):
    """Parameters are [prompt, sample, position] log-probabilities and entropies."""
    del samples
    rows = params[prompts.id]
    return TokenStats(logp=-(rows**2), entropy=jnp.cos(rows) + 1)


@pytest.mark.parametrize(
    "weighting",
    [
        chain(adv.silence_spurious(max_prob=0.9), adv.token_mean()),
        chain(adv.token_mean(), adv.keep_covariant(0.1)),
        chain(
            adv.token_mean(),
            adv.drop_covariant(fraction=0.2, low=0.1, clipped_fn=nothing_clipped),
        ),
    ],
    ids=["stapo", "kl_cov", "clip_cov"],
)
def test_selections_run_over_the_minibatch_however_it_is_cut(weighting):
    # Quantiles and means of each microbatch alone would select other tokens.
    draw = np.random.default_rng(0)
    rows = fakes.rollout(8, 4, 5)
    params = jnp.asarray(draw.uniform(0.1, 2.0, (8, 4, 5)), jnp.float32)
    state = fakes_state(params)
    method = adv.algorithm(
        policy=adv.Term(
            advantage=adv.center_by_group(),
            weighting=weighting,
            loss_fn=loss.ppo_clip(),
        )
    )
    credits, algorithm_state, _ = jax.jit(method.credit)(rows, method.init())
    state = state.replace(algorithm=algorithm_state)
    whole, parts = (
        jax.jit(of_minibatch, static_argnums=(0, 1, 2))(
            table_policy, method, Pieces(n), credits, rows, state, jnp.bool_(False)
        )
        for n in (1, 4)
    )
    for got, want in (
        (parts.grads, whole.grads),
        (parts.coefficient, whole.coefficient),
    ):
        np.testing.assert_allclose(want, got, rtol=1e-5, atol=1e-7)
    alone = weighting_of_each_microbatch(weighting, params, rows, credits)
    together = method.weigh(
        credits,
        rows.replace(current=table_policy(params, rows.prompts, rows.samples)),
        algorithm_state,
    )[0][0].weight
    assert ((alone > 0) != (np.asarray(together) > 0)).any()


def fakes_state(params):
    return TrainState(
        params=params, optimizer=(), algorithm=(), gate=(), key=None, step=jnp.int32(0)
    )


def weighting_of_each_microbatch(weighting, params, rows, credits):
    out = np.zeros(rows.samples.mask.shape)
    for m in range(4):
        part = jax.tree.map(lambda x, m=m: x[m::4], rows)
        credit = jax.tree.map(lambda x, m=m: x[m::4], credits[0])
        part = part.replace(
            current=table_policy(params, part.prompts, part.samples),
        )
        state = laws.init(weighting)
        out[m::4] = jax.jit(weighting.update)(credit, part, state)[0].weight
    return out


@pytest.mark.parametrize("q", [0.0, 0.2, 0.75, 0.8, 1.0])
def test_the_quantile_is_numpys_linear_one(q):
    draw = np.random.default_rng(1)
    for n in (1, 2, 3, 7, 20):
        values = draw.normal(size=20).astype(np.float32)
        mask = np.zeros(20, bool)
        mask[draw.permutation(20)[:n]] = True
        spoiled = np.where(mask, values, np.nan)
        got = order.quantile(jnp.asarray(spoiled), jnp.asarray(mask), q)
        want = np.quantile(values[mask].astype(np.float64), q)
        np.testing.assert_allclose(got, [want], rtol=1e-5, atol=1e-6)


def test_the_largest_are_exactly_so_many_even_among_equals():
    # Certain tokens tie at log-probability 0: a threshold would take all of them.
    values, mask = jnp.zeros((2, 3)), jnp.array([[True, True, False], [True] * 3])
    got = order.largest(values, mask, 2)
    assert got.tolist() == [[True, True, False], [False, False, False]]
    assert int(order.smallest(values, mask, 9).sum()) == 5


@pytest.mark.parametrize(("fraction", "n"), [(0.3, 10), (0.2, 35), (0.7, 30), (0.1, 7)])
def test_a_share_that_is_whole_is_not_rounded_up(fraction, n):
    # 0.3 * 10 is 3.0000001 in float32, whose ceiling is 4.
    got = float(jnp.ceil(order.share(jnp.ones(n, bool), fraction)))
    assert got == np.ceil(round(fraction * n, 9))


def test_out_of_range_numbers_are_refused_by_name():
    for make in (
        lambda: adv.silence_spurious(max_prob=0.0),
        lambda: adv.keep_top_entropy(0.0),
        lambda: adv.keep_covariant(1.5),
        lambda: adv.drop_covariant(low=5.0, high=1.0, clipped_fn=nothing_clipped),
    ):
        with pytest.raises(ValueError, match=r"max_prob|fraction|low"):
            make()
