"""Losses, advantages and returns beside rlax's own functions, live.

rlax works on one row of T steps without a mask, per-step weights and discounts at most;
its losses are means over the T steps, ours `constant_length(T)`.
"""

import warnings

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import loss, numerics
from rljax.advantage import gae, importance
from rljax.policy import divergence
from rljax.types import TokenStats

with warnings.catch_warnings(action="ignore"):  # its own dependencies are deprecated
    rlax = pytest.importorskip("rlax")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Rlax .* will be deprecated"),
]

P, G, T, V = 3, 4, 6, 5
DRAW = np.random.default_rng(0)


def normal(*shape, scale=1.0):
    return np.float32(DRAW.normal(0, scale, shape))


LOGITS = normal(P, G, T, V)
OLD = LOGITS + normal(P, G, T, V, scale=0.4)
ACTIONS = jnp.asarray(DRAW.integers(0, V, (P, G, T)), jnp.int32)
ADVANTAGE = normal(P, G, T)
VALUE, REWARD = normal(P, G, T), normal(P, G, T)
LAST = normal(P, G, 1)  # the value after the last token
MASK = jnp.asarray(DRAW.random((P, G, T)) < 0.7)


@jax.jit
def stats(logits, value=VALUE):
    logp, entropy = numerics.logp_and_entropy(logits, ACTIONS)
    extra = {"value": value} | divergence.divergences(logits, OLD)
    return TokenStats(logp=logp, entropy=entropy, extra=extra)


def rollout():
    rows = fakes.rollout(P, G, T)
    samples = rows.samples.replace(mask=MASK, behaviour=stats(LOGITS))
    return rows.replace(samples=samples, old=stats(OLD), reference=stats(OLD))


def rows_of(fn):
    """A function of one row, over all of them."""
    return jax.jit(jax.vmap(jax.vmap(fn)))


def ratio(logits):
    """rlax's importance ratio of whole distributions."""
    return rows_of(rlax.categorical_importance_sampling_ratios)(logits, OLD, ACTIONS)


def clipped(logits):
    """It takes no weights: advantage 0 is none."""
    return rows_of(rlax.clipped_surrogate_pg_loss)(
        ratio(logits), ADVANTAGE * MASK, jnp.full((P, G), 0.2)
    )


def policy_gradient(logits):
    weight = MASK.astype(jnp.float32)
    return rows_of(rlax.policy_gradient_loss)(logits, ACTIONS, ADVANTAGE, weight)


def entropy_loss(logits):
    return rows_of(rlax.entropy_loss)(logits, MASK.astype(jnp.float32))


def cross_entropy(logits):
    labels = jax.nn.one_hot(ACTIONS, V)
    return jnp.mean(rlax.categorical_cross_entropy(labels, logits) * MASK, -1)


def exact_kl(logits):
    return jnp.mean(rlax.categorical_kl_divergence(logits, OLD) * MASK, -1)


def exact_forward_kl(logits):
    return jnp.mean(rlax.categorical_kl_divergence(OLD, logits) * MASK, -1)


LOSSES = {
    "reinforce": (loss.reinforce(), policy_gradient),
    "ppo_clip": (loss.ppo_clip(0.2, 0.2), clipped),
    "entropy_bonus": (loss.entropy_bonus(), entropy_loss),
    "nll": (loss.nll(), cross_entropy),
    "kl_reverse_exact": (loss.kl_reverse_exact(), exact_kl),
    "kl_forward_exact": (loss.kl_forward_exact(), exact_forward_kl),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_in_the_logits(name):
    loss_fn, peer = LOSSES[name]
    rows = rollout()
    fixed = adv.stateless(lambda c, r: c.replace(advantage=ADVANTAGE))
    method = adv.algorithm(
        term=adv.Term(
            advantage=fixed, weighting=adv.constant_length(T), loss_fn=loss_fn
        )
    )

    def ours(logits):
        credits, state, _ = method.credit(rows, method.init())
        credits, _, _ = method.weigh(credits, rows, state)
        return method.loss(stats(logits), credits, rows)

    got, slope = jax.jit(jax.value_and_grad(ours))(LOGITS)
    want, their_slope = jax.jit(
        jax.value_and_grad(lambda logits: jnp.mean(peer(logits)))
    )(LOGITS)
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    np.testing.assert_allclose(slope, their_slope, rtol=1e-4, atol=1e-7)


def test_some_ratios_are_clipped_and_others_are_not():
    share = jnp.mean(loss.is_clipped(ratio(LOGITS), ADVANTAGE, 0.2, 0.2))
    assert 0.1 < float(share) < 0.5


def without_holes():
    """A hole as rlax could say it: reward 0, discount 1, the value that comes next."""
    value, later = np.array(VALUE), np.array(LAST[..., 0])
    for t in reversed(range(T)):
        later = value[..., t] = np.where(MASK[..., t], value[..., t], later)
    values = np.concatenate([value, LAST], -1)
    return np.where(MASK, REWARD, 0.0), values


def everywhere(number):
    """A number at the tokens of the mask, 1 at holes."""
    return np.where(MASK, np.float32(number), np.float32(1))


def by_gae(gamma, lam):
    reward, values = without_holes()
    fn = rlax.truncated_generalized_advantage_estimation
    return rows_of(fn)(reward, everywhere(gamma), everywhere(lam), values)


def by_vtrace(gamma, lam):
    """On-policy V-trace, which knows masks of its own, is GAE."""
    reward, values = without_holes()
    ones = jnp.ones((P, G, T))

    def row(now, after, reward, lam, mask):
        return rlax.vtrace(
            now, after, reward, gamma * ones[0, 0], ones[0, 0], lam, sample_mask=mask
        )

    lam = jnp.full((P, G, T), lam)
    return rows_of(row)(values[..., :-1], values[..., 1:], reward, lam, MASK)


@pytest.mark.parametrize("peer", [by_gae, by_vtrace])
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.7), (1.0, 0.95), (0.8, 0.0)])
def test_advantages_over_masks_with_holes(peer, gamma, lam):
    got, _ = jax.jit(gae.gae)(REWARD, VALUE, MASK, gamma, lam, LAST)
    want = np.where(MASK, peer(gamma, lam), 0.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.7), (1.0, 1.0)])
def test_the_target_of_the_value_is_the_lambda_return(gamma, lam):
    _, got = jax.jit(gae.gae)(REWARD, VALUE, MASK, gamma, lam, LAST)
    reward, values = without_holes()
    want = rows_of(rlax.lambda_returns)(
        reward, everywhere(gamma), values[..., 1:], everywhere(lam)
    )
    np.testing.assert_allclose(got, np.where(MASK, want, 0), rtol=1e-5, atol=1e-5)


def test_returns_to_go():
    rows = rollout()
    credit = adv.initial_credit(rows).replace(advantage=REWARD)
    got, _ = jax.jit(adv.assign_return_to_go(0.9).update)(credit, rows, ())
    reward, _ = without_holes()
    zero = jnp.zeros((P, G))
    want = rows_of(rlax.discounted_returns)(reward, everywhere(0.9), zero)
    np.testing.assert_allclose(
        got.advantage, np.where(MASK, want, 0), rtol=1e-5, atol=1e-5
    )


def test_truncated_importance_weights_are_those_of_impala():
    # Where lambda is 0, V-trace's advantage is one step's error times min(rho, cap):
    # a truncated weight times GAE. rlax's ratio is pi / mu of given logits.
    cap, gamma = 1.1, 0.9
    rows = rollout()
    mask = jnp.ones_like(MASK)
    rows = rows.replace(samples=rows.samples.replace(mask=mask))
    rho = jnp.exp(importance.mismatch(rows))
    np.testing.assert_allclose(rho, 1 / ratio(LOGITS), rtol=1e-5)
    weighting = adv.weigh_by_importance(importance.truncate(cap))
    weight = jax.jit(weighting.update)(adv.initial_credit(rows), rows, ())[0].weight
    advantage, _ = jax.jit(gae.gae)(REWARD, VALUE, mask, gamma, 0.0, LAST)
    after = np.concatenate([VALUE[..., 1:], LAST], -1)

    def row(now, after, reward, rho):
        discount = jnp.full(T, gamma)
        return rlax.vtrace_td_error_and_advantage(
            now, after, reward, discount, rho, 0.0, clip_pg_rho_threshold=cap
        ).pg_advantage

    want = rows_of(row)(VALUE, after, REWARD, rho)
    assert 0.2 < float(jnp.mean(rho > cap)) < 0.8
    np.testing.assert_allclose(weight * advantage, want, rtol=1e-5, atol=1e-6)


def test_the_value_loss_without_a_trust_region_is_half_the_square():
    rows = rollout()
    rows = rows.replace(old=stats(OLD, VALUE + 1))
    credit = adv.initial_credit(rows).replace(advantage=REWARD)
    got = loss.value_loss(jnp.inf)(stats(LOGITS), credit, rows)
    np.testing.assert_allclose(got, rlax.l2_loss(VALUE, REWARD), rtol=1e-6)


def test_the_moving_average_from_zero():
    init, update = rlax.create_ema(0.9)
    theirs = init(jnp.zeros(()))
    controller = adv.ema(0.1, initial=0.0)
    _, ours = controller.init()
    for x in (4.0, -1.0, 2.5):
        value, ours = controller.update(jnp.float32(x), ours)
        _, theirs = update(jnp.float32(x), theirs)
        assert float(value) == pytest.approx(float(theirs.mu), rel=1e-6)
