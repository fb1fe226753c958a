"""Surrogates on published numbers: loss and coefficient -dl/dlogp of every token.

Numbers without another source follow from the losses' formulas by hand; with rho and d
a token's ratio and its logarithm, s a row's:

    dual clip  -min(rho A, clip(rho) A), at most -c A for A < 0     arXiv:1912.09729
    CISPO      -sg[clip(rho)] A log pi                              arXiv:2506.13585
    SAPO       -A (4 / tau) sigmoid(tau (rho - 1))                  arXiv:2511.20347
    GSPO       -min(s A, clip(s) A), s = exp(mean d)                arXiv:2507.18071
    GMPO       -A exp(mean of d clipped on A's side)                arXiv:2507.20673
    MinPRO     CISPO with rho times the prefix's smallest rho       arXiv:2601.22718
    Turn-PPO   PPO's clip of exp(mean d of the turn)                arXiv:2511.20718

Coefficients are those of the token mean times the token count.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from token_case import case, loss_of, per_token

from rljax import advantage as adv
from rljax import loss, numerics
from rljax.loss import ratio, sequence_ratio

SEVEN = [[0.5, 1, 1.5, 0.5, 1, 1.5, 4]]


SIGNS = [[1, 1, 1, -1, -1, -1, -1]]


PPO = case(SIGNS, np.log(SEVEN))


def coefficients(case, loss_fn):
    return loss_of(case, loss_fn)[1] * np.sum(np.asarray(case.rollout.samples.mask))


def test_dual_clip_bounds_the_loss_of_bad_tokens():
    fn = loss.dual_clip(0.2, 0.28, 3.0)
    np.testing.assert_allclose(
        -per_token(PPO, fn), [[0.5, 1, 1.28, -0.8, -1, -1.5, -3]], rtol=1e-6
    )
    np.testing.assert_allclose(
        coefficients(PPO, fn), [[0.5, 1, 0, 0, -1, -1.5, 0]], rtol=1e-6
    )
    assert loss_of(PPO, fn)[0] == pytest.approx(0.50285714, abs=1e-6)


def test_without_the_dual_clip_the_last_token_costs_its_whole_ratio():
    fn = loss.ppo_clip(0.2, 0.28)
    assert loss_of(PPO, fn)[0] == pytest.approx(0.64571429, abs=1e-6)
    assert coefficients(PPO, fn)[0, -1] == pytest.approx(-4)


def test_clipped_shares():
    a, rho = PPO.credit.advantage, jnp.asarray([SEVEN])
    clipped = loss.is_clipped(rho, a, 0.2, 0.28)
    assert float(jnp.mean(clipped)) == pytest.approx(2 / 7)
    assert float(jnp.mean((a < 0) & (rho > 3))) == pytest.approx(1 / 7)
    # CleanRL counts |rho - 1| > eps whatever the advantage's sign.
    assert float(jnp.mean(jnp.abs(rho - 1) > 0.2)) == pytest.approx(5 / 7)


def test_without_advantage_nothing_is_pushed():
    zero = case(np.zeros((1, 7)), np.log(SEVEN))
    value, coefficient = loss_of(zero, loss.dual_clip())
    assert value == 0
    np.testing.assert_array_equal(coefficient, 0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_on_an_edge_keeps_its_whole_gradient(advantage):
    # minimum of clipped and unclipped would split the tie and give .75 of it.
    edge = case(advantage, [[0.0]])
    for fn in (loss.dual_clip(0.0, 0.0), loss.ppo_clip(0.0, 0.0)):
        np.testing.assert_allclose(coefficients(edge, fn), [[advantage]])
    exact = sequence_ratio.mean_of_clipped(0.0, 0.0)
    np.testing.assert_allclose(coefficients(edge, loss.gmpo(exact)), [[advantage]])


def test_justrls_dual_clip():
    far = case(-1.0, np.log([[20.0]]))
    value, coefficient = loss_of(far, loss.dual_clip(0.2, 0.28, 10.0))
    assert -value == pytest.approx(-10)
    assert coefficient == pytest.approx(0)


def test_slimes_dual_clip():
    # slime tests/test_policy_loss.py: eps .2/.2, c 1.5.
    rows = case([[2, -2, 2]], np.log([[2, 2, 0.5]]))
    got = per_token(rows, loss.dual_clip(0.2, 0.2, 1.5))
    np.testing.assert_allclose(got, [[-2.4, 3.0, -1.0]], rtol=1e-6)


ADVANTAGE = np.array([[0.3, 0.2, 0.1], [-0.3, -0.2, -0.1]])


def test_rlaxs_clipped_surrogate():
    # rlax policy_gradients_test.py, float64 values: two rows of three steps over three
    # actions, ratios (1, 1, .13533528), means over each row's steps.
    logits = np.array([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
    old = np.array([[1.0, 1, 1], [2, 0, 0], [-3, -2, -1]])
    now, before = (
        numerics.logp_and_entropy(jnp.asarray(x), jnp.arange(3))[0]
        for x in (logits, old)
    )
    rows = case(ADVANTAGE, np.tile(now - before, (2, 1)), logp=np.tile(now, (2, 1)))
    got = per_token(rows, loss.ppo_clip(0.2, 0.2)).mean(-1)
    np.testing.assert_allclose(got, [-0.17117784, 0.19333333], rtol=1e-6)


def test_rlaxs_policy_gradient_and_entropy_losses():
    # Same file: means over three steps of -w A log pi, and of -w H.
    logits = np.array([[[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]]] * 2)
    logits[1] += 1
    actions = jnp.array([[0, 1, 2], [0, 0, 0]])
    weights = np.array([[-2.0, 2, 0], [-3, 1, -1]])
    logp, entropy = numerics.logp_and_entropy(jnp.asarray(logits), actions)
    rows = case(ADVANTAGE, logp=logp, entropy=entropy)
    policy = weights * per_token(rows, loss.reinforce())
    np.testing.assert_allclose(policy.mean(-1), [0.07888351, 0.32720090], rtol=1e-5)
    bonus = weights * per_token(rows, loss.entropy_bonus())
    np.testing.assert_allclose(bonus.mean(-1), [0.28869307, 1.15421992], rtol=1e-5)


@pytest.mark.parametrize(
    ("advantage", "mask", "weights", "want"),
    [
        # marin tests/rl/test_loss.py: clip .2, ratio 1 on every kept token, token mean.
        ([[0.5, 1, 0]], [[1, 1, 1]], None, -0.5),
        # With a trainer-sampler ratio of .5, 1, 0 as a further weight.
        ([[0.5, 1, 0]], [[1, 1, 1]], [[0.5, 1, 0]], -0.416667),
        ([[-0.5, -1, 1]], [[1, 1, 1]], None, 0.166667),
        ([[1, 1, 1], [-1, -1, -1]], [[1, 1, 1], [1, 1, 1]], None, 0.0),
    ],
)
def test_marins_objective(advantage, mask, weights, want):
    rows = case(advantage, 0.0, mask=mask)
    weights = np.ones_like(mask) if weights is None else np.asarray(weights)
    then = adv.stateless(
        lambda c, r: c.replace(weight=c.weight * jnp.asarray(weights, jnp.float32))
    )
    value, _ = loss_of(rows, loss.ppo_clip(), adv.chain(adv.token_mean(), then))
    assert value == pytest.approx(want, abs=1e-6)


FOUR = case([[1, 1, 1, -1]], np.log([[0.5, 1, 3, 6]]), logp=[[-1, -0.5, -2, -3]])


def test_cispo_with_an_absolute_cap():
    value, coefficient = loss_of(FOUR, loss.cispo(cap=5.0))
    assert value == pytest.approx(-2.0, abs=1e-5)
    np.testing.assert_allclose(-coefficient, [[-0.125, -0.25, -0.75, 1.25]], rtol=1e-6)


def test_cispo_with_an_offset_cap_as_in_verls_script():
    # verl: lower bound 1 - 10, upper bound 1 + .2: weights .5, 1, 1.2, 1.2.
    value, coefficient = loss_of(FOUR, loss.cispo_band(10.0, 0.2))
    assert value == pytest.approx(-0.05, abs=1e-6)
    np.testing.assert_allclose(4 * coefficient, [[0.5, 1, 1.2, -1.2]], rtol=1e-6)
    # TRL's convention with verl's number is another method: everything at most 0.2.
    assert loss_of(FOUR, loss.cispo(cap=0.2))[0] != pytest.approx(value, abs=1e-3)


def test_skyrls_cispo():
    # SkyRL-tx tests/tinker/test_loss_fns.py: absolute bounds [.8, 1.2].
    logp = [[0, 5, -5]]
    rows = case([[1, 2, 3]], logp, logp=logp, mask=[[1, 1, 0]])
    fn = loss.cispo(floor=0.8, cap=1.2)
    np.testing.assert_allclose(per_token(rows, fn)[0, :2], [0, -12], rtol=1e-6)
    np.testing.assert_allclose(coefficients(rows, fn), [[1, 2.4, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "weights", "want"),
    [
        (0.2, 0.28, [1, 1.14, 1.28, 0.8], [0.7, -0.684, 1.024, -1.68]),
        (1.0, 4.0, [1, 3, 5, 0.4], [0.7, -1.8, 4, -0.84]),
    ],
)
def test_slimes_cispo(low, high, weights, want):
    # slime tests/test_cispo_loss.py: offsets, as in verl.
    a = np.array([[1, -0.5, 2, -1]])
    rho = [[1, 1.14, 1.56, 0.4]] if high < 1 else [[1, 3, 9, 0.4]]
    rows = case(a, np.log(rho), logp=[[-0.7, -1.2, -0.4, -2.1]])
    fn = loss.cispo_band(low, high)
    np.testing.assert_allclose(per_token(rows, fn), [want], rtol=1e-5)
    np.testing.assert_allclose(coefficients(rows, fn), weights * a, rtol=1e-5)


SOFT = np.array([[0.5, 1, 1.5, 2]])


SAPO_TABLE = {
    1.0: ([1.510163, 2, 2.489837, 2.924234], [0.940015, 1, 0.940015, 0.786448]),
    -1.0: ([1.415938, 1.904762, 2.393585, 2.822], [0.93414, 1, 0.93414, 0.76811]),
}


@pytest.mark.parametrize("sign", SAPO_TABLE)
def test_sapos_gate_and_its_slope(sign):
    f, slope = SAPO_TABLE[sign]
    rows = case(np.full((1, 4), sign), np.log(SOFT))
    got = per_token(rows, loss.sapo())
    np.testing.assert_allclose(got, [-sign * np.array(f)], rtol=1e-6)
    want = sign * np.array(slope) * SOFT
    np.testing.assert_allclose(coefficients(rows, loss.sapo()), want, rtol=1e-5)


def test_trls_sapo_is_two_at_ratio_one():
    # trl tests/test_grpo_trainer.py test_get_sapo_token_loss: sigmoid(0) 4 / 1.
    rows = case(1.0, np.zeros((2, 4)))
    np.testing.assert_allclose(per_token(rows, loss.sapo()), np.full((2, 4), -2.0))


MINPRO = case(
    np.ones((1, 4)), np.log([[1.1, 0.8, 1.0, 1.5]]), logp=[[-0.5, -1, -0.2, -2]]
)


def test_minpro_damps_by_the_smallest_ratio_of_the_prefix():
    value, coefficient = loss_of(MINPRO, loss.minpro(0.2, 0.28))
    assert value == pytest.approx(0.9975, abs=1e-6)
    np.testing.assert_allclose(-coefficient, [[-0.275, -0.22, -0.2, -0.3]], rtol=1e-5)
    d = MINPRO.rollout.current.logp - MINPRO.rollout.old.logp
    minimum = jnp.exp(ratio.prefix_minimum(d, jnp.ones(d.shape, bool)))
    np.testing.assert_allclose(minimum[0], [[1, 1.1, 0.8, 0.8]], rtol=1e-5)

    # An inclusive minimum would give .64 for the second product, not .88.


def test_cispo_with_the_same_clip_does_not_damp():
    value, _ = loss_of(MINPRO, loss.cispo_band(0.2, 0.28))
    assert value == pytest.approx(1.0275, abs=1e-6)
    weights = -per_token(MINPRO, loss.cispo_band(0.2, 0.28)) / np.array(
        [[-0.5, -1, -0.2, -2]]
    )
    np.testing.assert_allclose(weights, [[1.1, 0.8, 1.0, 1.28]], rtol=1e-5)


@pytest.mark.parametrize(
    ("low", "want"), [(0.2, [1, 0.8, 0.8, 0.8]), (1.0, [1, 0.05, 0.05, 0.06])]
)
def test_a_floor_takes_most_of_minpros_damping(low, want):
    rows = case(np.ones((1, 4)), np.log([[1, 0.05, 1, 1.2]]), logp=-1.0)
    np.testing.assert_allclose(
        coefficients(rows, loss.minpro(low, 0.28)), [want], rtol=1e-5
    )


def test_a_hole_is_no_part_of_the_prefix():
    rows = case(
        np.ones((1, 4)), np.log([[0.5, 0.01, 1, 1]]), mask=[[1, 0, 1, 1]], logp=-1.0
    )
    got = coefficients(rows, loss.minpro(1.0, 0.28))
    np.testing.assert_allclose(got, [[0.5, 0, 0.5, 0.5]], rtol=1e-5)


LOSSES = {
    "cispo": loss.cispo(),
    "clipping_bias": loss.clipping_bias(),
    "dual_clip": loss.dual_clip(),
    "gmpo": loss.gmpo(),
    "gspo": loss.gspo(),
    "gspo_token": loss.gspo_token(),
    "minpro": loss.minpro(),
    "sapo": loss.sapo(),
    "turn_ppo": loss.turn_ppo(),
}


@pytest.mark.parametrize("fn", LOSSES.values(), ids=LOSSES)
def test_padding_that_is_nan_changes_nothing(fn):
    draw = np.random.default_rng(0)
    a, d = draw.normal(size=(2, 3, 5))
    mask = np.array([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    clean, spoiled = (
        case(a, np.where(mask, d, fill), mask=mask) for fill in (0.0, np.nan)
    )
    (want, coef), (got, spoiled_coef) = (loss_of(c, fn) for c in (clean, spoiled))
    assert got == pytest.approx(want, rel=1e-6)
    inside = np.asarray(mask, bool)
    np.testing.assert_allclose(spoiled_coef[inside], coef[inside], rtol=1e-5)


def test_numbers_out_of_range_are_refused():
    for make in (
        lambda: loss.dual_clip(cap=1.0),
        lambda: loss.cispo(floor=2.0, cap=1.0),
        lambda: loss.sapo(positive=0.0),
        lambda: loss.minpro(low=1.5),
    ):
        with pytest.raises(ValueError, match=r"cap|floor|positive|low"):
            make()


def test_bounds_may_be_traced():
    got = jax.jit(lambda cap: per_token_sum(loss.cispo(cap=cap)))(5.0)
    assert float(got) == pytest.approx(-8.0, abs=1e-4)


def per_token_sum(fn):
    return jnp.sum(fn(FOUR.rollout.current, FOUR.credit, FOUR.rollout))
