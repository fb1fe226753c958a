"""Divergences and entropy against exact enumeration over a vocabulary of five.

The policy is softmax(theta). Value: the expectation of the term under the policy.
Gradient: the expected gradient of the term at tokens sampled on-policy, which is what
training follows; the sampling itself is not differentiated.
"""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import loss, numerics
from rljax.types import TokenStats

pytestmark = pytest.mark.usefixtures("strict")

THETA = jnp.array([0.9, -0.4, 0.1, -1.3, 0.5])
REFERENCE = jax.nn.log_softmax(jnp.array([-0.2, 0.8, 0.3, -0.6, 0.0]))


def of_token(loss_fn, theta, tokens, reference=REFERENCE):
    """f32[n]: the term at each of these tokens."""
    logits = jnp.broadcast_to(theta, (*tokens.shape, theta.size))
    logp, entropy = numerics.logp_and_entropy(logits, tokens)
    rows = fakes.rollout(1, 1, tokens.size)
    rows = rows.replace(reference=TokenStats(logp=reference[tokens][None, None]))
    now = TokenStats(logp=logp[None, None], entropy=entropy[None, None])
    return loss_fn(now, None, rows)[0, 0]


def value_and_gradient(loss_fn):
    """Expected value f32[] and expected gradient f32[V], by enumeration."""
    every = jnp.arange(THETA.size)
    pi = jax.nn.softmax(THETA)

    def expected(theta):
        return jnp.sum(pi * of_token(loss_fn, theta, every))

    return jax.value_and_grad(expected)(THETA)


def kl(theta):
    logp = jax.nn.log_softmax(theta)
    return jnp.sum(jnp.exp(logp) * (logp - REFERENCE))


def reverse_kl(theta):
    return jnp.sum(jnp.exp(REFERENCE) * (REFERENCE - jax.nn.log_softmax(theta)))


def close(got, want, atol=1e-6):
    chex.assert_trees_all_close(got, want, atol=atol)


def test_k1_has_the_value_of_kl_and_no_gradient():
    value, grad = value_and_gradient(loss.kl_k1())
    close(value, kl(THETA))
    close(grad, jnp.zeros(5))


def test_k2_has_a_biased_value_and_exactly_the_gradient_of_kl():
    value, grad = value_and_gradient(loss.kl_k2())
    assert abs(float(value - kl(THETA))) > 0.01
    close(grad, jax.grad(kl)(THETA))


def test_k3_has_the_value_of_kl_and_the_gradient_of_the_reverse_kl():
    value, grad = value_and_gradient(loss.kl_k3())
    close(value, kl(THETA))
    close(grad, jax.grad(reverse_kl)(THETA))
    assert float(jnp.max(jnp.abs(grad - jax.grad(kl)(THETA)))) > 0.05


def test_k3_straight_has_the_value_and_the_gradient_of_kl():
    value, grad = value_and_gradient(loss.kl_k3_straight_through())
    close(value, kl(THETA))
    close(grad, jax.grad(kl)(THETA))


def test_k3_straight_is_k3_with_the_gradient_of_k2_at_every_single_token():
    # verl's k3+; on average alone a compensating error could hide.
    every = jnp.arange(5)
    close(
        of_token(loss.kl_k3_straight_through(), THETA, every),
        of_token(loss.kl_k3(), THETA, every),
    )
    of = [
        jax.jacobian(lambda theta, f=f: of_token(f, theta, every))(THETA)
        for f in (loss.kl_k3_straight_through(), loss.kl_k2())
    ]
    close(*of)


@pytest.mark.parametrize(
    ("loss_fn", "want"),
    [
        (loss.kl_k1(), 0.35),
        (loss.kl_k2(), 0.0725),
        (loss.kl_k3(), 0.06263071),
        (loss.kl_k3_straight_through(), 0.06263071),
    ],
)
def test_published_values(loss_fn, want):
    # marin tests/rl/test_loss.py: logp (-.2, -.1) against reference (-.4, -.6).
    now = TokenStats(logp=jnp.array([[[-0.2, -0.1]]]))
    rows = fakes.rollout(1, 1, 2)
    rows = rows.replace(reference=TokenStats(logp=jnp.array([[[-0.4, -0.6]]])))
    assert float(jnp.mean(loss_fn(now, None, rows))) == pytest.approx(want, abs=1e-7)


@pytest.mark.parametrize("d", [1e-4, -1e-4, 1e-5, -1e-5])
@pytest.mark.parametrize("loss_fn", [loss.kl_k3(), loss.kl_k3_straight_through()])
def test_k3_near_zero_is_half_the_square_in_float32(loss_fn, d):
    # exp(d) - 1 - d in float32 is off by factors of 2 to 270 here.
    now = TokenStats(logp=jnp.zeros((1, 1, 1)))
    rows = fakes.rollout(1, 1, 1)
    rows = rows.replace(reference=TokenStats(logp=jnp.full((1, 1, 1), d, jnp.float32)))
    got = float(loss_fn(now, None, rows)[0, 0, 0])
    assert got == pytest.approx(0.5 * d * d, rel=2e-3)


def test_k3_is_never_negative():
    d = np.random.default_rng(0).normal(0, 0.3, (1, 1, 1000)).astype(np.float32)
    rows = fakes.rollout(1, 1, 1000).replace(reference=TokenStats(logp=jnp.asarray(d)))
    now = TokenStats(logp=jnp.zeros((1, 1, 1000)))
    assert float(jnp.min(loss.kl_k3()(now, None, rows))) >= 0


def test_entropy_bonus_is_minus_the_exact_entropy_with_its_exact_gradient():
    # pi = (.7, .2, .1): H = -sum pi log pi = .80181855, dH/dlogit_j = -pi_j (log pi_j +
    # H). A gradient through the sampled -logp would vanish in expectation.
    theta = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    one = jnp.zeros((1,), jnp.int32)

    def bonus(theta):
        return of_token(loss.entropy_bonus(), theta, one, jnp.zeros(3))[0]

    value, grad = jax.value_and_grad(bonus)(theta)
    close(value, -0.80181855)
    close(grad, jnp.array([0.31160053, -0.16152387, -0.15007665]))


def test_times_the_ratio_k3_is_the_kl_off_policy_too():
    # Drawn from mu = [.6, .3, .1]: sum mu (pi / mu) k3 = sum pi k3 = KL(pi, pi_ref) =
    # .08512283. Without the ratio, sum mu k3 = .08950052.
    theta = jnp.log(jnp.array([0.7, 0.2, 0.1]))
    reference = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    drawn_from = jnp.array([0.6, 0.3, 0.1])

    def expected(loss_fn, theta):
        logp = jax.nn.log_softmax(theta)[None, None]
        rows = fakes.rollout(1, 1, 3).replace(
            reference=TokenStats(logp=reference[None, None]),
            old=TokenStats(logp=jnp.log(drawn_from)[None, None]),
        )
        return jnp.sum(drawn_from * loss_fn(TokenStats(logp=logp), None, rows)[0, 0])

    close(expected(loss.kl_k3(), theta), jnp.float32(0.08950052))
    weighed = loss.times_ratio(loss.kl_k3())
    value, grad = jax.value_and_grad(lambda x: expected(weighed, x))(theta)
    close(value, jnp.float32(0.08512283))
    close(grad, jnp.array([0.17594459, -0.09811759, -0.07782700]))
