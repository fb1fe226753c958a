"""Entropy bonus, its controller, and the law R = -a exp(H) + b.

Numbers follow by hand: of pi = (.7, .2, .1), H = -sum pi log pi = .80181855 nats and
dH/dlogit_j = -pi_j (log pi_j + H); the controller's from its rule (arXiv:2505.22312), c
up by 1e-4 below the target of .2 and down above it.
"""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from token_case import case

from rljax import advantage as adv
from rljax import algorithms, loss, numerics
from rljax.analysis import entropy_law

PI = np.array([0.7, 0.2, 0.1])
SLOPE = [-0.31160053, 0.16152387, 0.15007665]


def test_the_exact_bonus_and_its_gradient():
    def entropy(logits):
        return numerics.logp_and_entropy(logits, jnp.int32(0))[1]

    logits = jnp.log(jnp.asarray(PI))
    assert float(entropy(logits)) == pytest.approx(0.80181855, abs=1e-6)
    np.testing.assert_allclose(jax.grad(entropy)(logits), SLOPE, atol=1e-6)


def test_the_sampled_bonus_has_the_same_expected_gradient():
    # Differentiating the value log pi itself would give 0.
    def bonus(logits):
        logp = jax.nn.log_softmax(logits)[None, None]
        rows = case(np.ones((1, 3)))
        now = rows.rollout.current.replace(logp=logp)
        values = loss.entropy_bonus_sampled()(now, rows.credit, rows.rollout)
        return jnp.sum(jnp.asarray(PI) * values)

    value, grad = jax.value_and_grad(bonus)(jnp.log(jnp.asarray(PI)))
    assert float(value) == pytest.approx(-0.80181855, abs=1e-6)
    np.testing.assert_allclose(grad, -np.array(SLOPE), atol=1e-6)


def drive(controller, measurements):
    value, state = controller.init()
    values, states = [float(value)], []
    for e in measurements:
        value, state = controller.update(jnp.float32(e), state)
        values.append(float(value))
        states.append(state)
    return values, states


def test_skyworks_controller():
    values, c = drive(adv.entropy_controller(), [0.3, 0.15, 0.1, 0.2, 0.1])
    np.testing.assert_allclose(c, [0, 1e-4, 2e-4, 1e-4, 2e-4], atol=1e-9)
    np.testing.assert_allclose(values, [0, 0, 1e-4, 2e-4, 0, 2e-4], atol=1e-9)
    _, c = drive(adv.entropy_controller(initial=0.0049), [0.1, 0.1])
    np.testing.assert_allclose(c, [0.005, 0.005], atol=1e-9)


def test_a_delayed_controllers_value_serves_the_next_step():
    values, _ = drive(adv.delayed(adv.entropy_controller()), [0.3, 0.15, 0.1, 0.2, 0.1])
    np.testing.assert_allclose(values[1:], [0, 0, 1e-4, 2e-4, 0], atol=1e-9)


def test_the_recipes_coefficient_moves_once_per_rollout_batch():
    # Twice weighed (two optimiser steps), once credited: one step of 1e-4.
    rows = fakes.rollout()
    low = rows.replace(old=rows.old.replace(logp=jnp.full(rows.old.logp.shape, -0.1)))
    recipe = algorithms.skywork_or1()
    state = recipe.init()
    coefficients = []
    for _ in range(3):
        credits, state, _ = recipe.credit(low, state)
        for _ in range(2):
            _, state, _ = recipe.weigh(credits, low, state)
        coefficients.append(float(credits[1].advantage[0, 0, 0]))
    np.testing.assert_allclose(coefficients, [0, 1e-4, 2e-4], atol=1e-9)

    def bonus(entropy):
        weighed, _, _ = recipe.weigh(credits, low, state)
        return recipe.loss(low.current.replace(entropy=entropy), weighed, low)

    pull = jax.grad(bonus)(low.current.entropy)
    mask = np.asarray(low.samples.mask)
    np.testing.assert_allclose(pull[mask], -2e-4 / mask.sum(), rtol=1e-5)


LAW = entropy_law.EntropyLaw(a=0.2, b=0.7, r_squared=1.0)


def test_the_law():
    np.testing.assert_allclose(LAW([0, 0.5, 1]), [0.5, 0.370256, 0.156344], atol=1e-6)
    assert LAW.ceiling == pytest.approx(0.5)


def test_the_fit_finds_the_law_again():
    h = np.array([0.05, 0.2, 0.6, 1.1])
    got = entropy_law.fit(h, LAW(h))
    assert got.a == pytest.approx(0.2) and got.b == pytest.approx(0.7)
    assert got.r_squared == pytest.approx(1)
    noisy = entropy_law.fit(h, LAW(h) + np.array([0.01, -0.01, -0.01, 0.01]))
    assert 0.9 < noisy.r_squared < 1


@pytest.mark.parametrize(
    ("h", "r", "message"),
    [
        ([1.0, 1.0], [0.1, 0.2], "two different"),
        ([1.0], [0.1, 0.2], "one shape"),
        ([1.0, np.nan], [0.1, 0.2], "finite"),
    ],
)
def test_what_cannot_be_fitted_is_refused(h, r, message):
    with pytest.raises(ValueError, match=message):
        entropy_law.fit(np.array(h), np.array(r))


def test_points_and_picture_of_a_run(tmp_path):
    records = [
        {"kind": "step", "step": s, "seconds": s, "policy/entropy_nats": 1 - s / 10}
        for s in range(1, 10)
    ]
    records += [
        {"kind": "evaluation", "step": s, "seconds": s, "acc": float(LAW(1 - s / 10))}
        for s in (2, 5, 9)
    ]
    h, r = entropy_law.points(records, "acc")
    np.testing.assert_allclose(h, [0.8, 0.5, 0.1])
    law = entropy_law.fit(h, r)
    assert law.a == pytest.approx(0.2)
    entropy_law.plot(tmp_path / "law.png", law, h, r, name="accuracy")
    assert (tmp_path / "law.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="'other'"):
        entropy_law.points(records, "other")
