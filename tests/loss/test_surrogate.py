"""Surrogates: published losses and coefficients -dl/dlogp, strict bounds."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import loss
from rljax.types import TokenStats

pytestmark = pytest.mark.usefixtures("strict")

# -l = min(rho A, clip(rho, .8, 1.28) A): arXiv:1707.06347, eq. (7), with the bounds of
# arXiv:2503.14476. A token that is clipped has coefficient 0, another one rho A.
RATIO = [0.5, 1, 1.5, 0.5, 1, 1.5, 4]
SIGN = [1, 1, 1, -1, -1, -1, -1]


def loss_and_coefficient(loss_fn, logp, old, advantage):
    """Loss and -dl/dlogp, f32[n], of n rows with one token each."""
    rows = fakes.rollout(1, len(logp), 1, length=np.ones((1, len(logp))))
    rows = rows.replace(
        old=TokenStats(logp=jnp.asarray(old, jnp.float32)[None, :, None])
    )
    credit = fakes.credit_of(rows, jnp.asarray(advantage, jnp.float32)[None])

    def total(logp):
        value = loss_fn(TokenStats(logp=logp[None, :, None]), credit, rows)[0, :, 0]
        return jnp.sum(value), value

    grad, value = jax.grad(total, has_aux=True)(jnp.asarray(logp, jnp.float32))
    return value, -grad


def at_ratio(loss_fn, ratio, advantage):
    old = np.full(len(ratio), -1.0)
    return loss_and_coefficient(loss_fn, old + np.log(ratio), old, advantage)


def close(got, want):
    chex.assert_trees_all_close(got, jnp.asarray(want, jnp.float32), atol=2e-6)


def test_ppo_clip_by_published_numbers():
    value, coefficient = at_ratio(loss.ppo_clip(0.2, 0.28), RATIO, SIGN)
    close(-value, [0.5, 1, 1.28, -0.8, -1, -1.5, -4])
    close(coefficient, [0.5, 1, 0, 0, -1, -1.5, -4])
    assert float(jnp.mean(value)) == pytest.approx(0.64571429, abs=1e-6)


def test_the_bounds_are_two_numbers():
    # Ratio 1.25 lies within clip-higher's .28 and outside PPO's .2; at .75 likewise.
    for low, high, want in ((0.2, 0.28, [1.25, 0]), (0.3, 0.2, [0, -0.75])):
        _, coefficient = at_ratio(loss.ppo_clip(low, high), [1.25, 0.75], [1, -1])
        close(coefficient, want)


def test_a_ratio_exactly_on_a_bound_is_not_clipped():
    # Bounds of distance 0 at ratio 1: `minimum` would split the tie, and `>=` give 0.
    _, coefficient = at_ratio(loss.ppo_clip(0.0, 0.0), [1, 1], [1, -1])
    close(coefficient, [1, -1])


def test_no_advantage_pushes_nothing():
    value, coefficient = at_ratio(loss.ppo_clip(), RATIO, [0] * 7)
    close(value, [0] * 7)
    close(coefficient, [0] * 7)


def test_on_policy_ppo_clip_pushes_as_reinforce_does():
    old = [-0.3, -2.0]
    for loss_fn in (loss.ppo_clip(), loss.reinforce()):
        _, coefficient = loss_and_coefficient(loss_fn, old, old, [0.7, -0.2])
        close(coefficient, [0.7, -0.2])


def test_nll_pushes_every_token_by_one_whatever_its_reward():
    value, coefficient = loss_and_coefficient(loss.nll(), [-0.3, -2], [0, 0], [5, -5])
    close(value, [0.3, 2])
    close(coefficient, [1, 1])


@pytest.mark.parametrize(
    ("low", "high", "name"), [(1.5, 0.2, "low"), (-0.1, 0.2, "low"), (0.2, -1, "high")]
)
def test_bounds_outside_their_range_are_refused(low, high, name):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        loss.ppo_clip(low, high)


# rlax rlax/_src/policy_gradients_test.py, recomputed in float64 (anchors/peers.md, 6).

LOGITS = np.array([[1.0, 1, 1], [2, 0, 0], [-1, -2, -3]])
ADVANTAGE = np.array([0.3, 0.2, 0.1])


def log_pi(logits, actions):
    return jax.nn.log_softmax(jnp.asarray(logits))[jnp.arange(3), jnp.array(actions)]


@pytest.mark.parametrize(("sign", "want"), [(1, -0.17117784), (-1, 0.19333333)])
def test_ppo_clip_agrees_with_rlax(sign, want):
    old = log_pi([[1, 1, 1], [2.0, 0, 0], [-3, -2, -1]], [0, 1, 2])
    new = log_pi(LOGITS, [0, 1, 2])
    value, _ = loss_and_coefficient(loss.ppo_clip(), new, old, sign * ADVANTAGE)
    assert float(jnp.mean(value)) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("actions", "weights", "sign", "want"),
    [
        ([0, 1, 2], [-2, 2, 0], 1, 0.07888351),
        ([0, 0, 0], [-3, 1, -1], -1, 0.32720090),
    ],
)
def test_reinforce_agrees_with_rlax(actions, weights, sign, want):
    logp = log_pi(LOGITS, actions)
    value, _ = loss_and_coefficient(loss.reinforce(), logp, logp, sign * ADVANTAGE)
    mean = jnp.mean(value * jnp.array(weights, jnp.float32))
    assert float(mean) == pytest.approx(want, abs=1e-6)
