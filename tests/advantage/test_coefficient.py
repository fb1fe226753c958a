"""Coefficients that follow entropy and KL: rules by hand, and in a closed loop."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import algorithms, loss, program
from rljax.learn import update
from rljax.rollout.sample import sampler
from rljax.types import Verdict


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


TARGET = 0.1


def test_skyrls_number():
    # SkyRL tests/backends/skyrl_train/utils/test_ppo_utils.py: .2 -> .204, the error
    # (of 1) clipped to .2, 10 samples of a horizon of 100.
    controller = adv.kl_controller(0.1, rate=10 / 100, initial=0.2)
    first, state = controller.init()
    value, _ = controller.update(jnp.float32(0.2), state)
    assert float(first) == pytest.approx(0.2)
    assert float(value) == pytest.approx(0.204)


@pytest.mark.parametrize(
    ("divergence", "factor"),
    [(0.1, 1.0), (0.11, 1.01), (0.09, 0.99), (9.0, 1.02), (0.0, 0.98), (-1.0, 0.98)],
)
def test_the_coefficient_follows_the_relative_error(divergence, factor):
    controller = adv.kl_controller(0.1, rate=0.1, initial=0.5)
    value, _ = controller.update(jnp.float32(divergence), controller.init()[1])
    assert float(value) == pytest.approx(0.5 * factor)


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"target": 0.0}, "target"),
        ({"rate": 0.0}, "rate"),
        ({"initial": 0.0}, "initial"),
        ({"largest_error": 2.0}, "largest_error"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, name):
    target = numbers.pop("target", 0.1)
    with pytest.raises(ValueError, match=name):
        adv.kl_controller(target, **{"rate": 0.1} | numbers)


def divergence_after_training(coefficient):
    """Nats per token, of a bandit whose reward asks for one token."""
    P, T, V = 8, 1, 4
    policy = fakes.bandit(P, T, V)
    method = adv.algorithm(
        policy=adv.Term(
            advantage=adv.center_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(),
        ),
        kl=adv.Term(
            advantage=coefficient,
            weighting=adv.token_mean(),
            loss_fn=loss.times_advantage(loss.kl_k3()),
        ),
    )
    learner = update.learner(policy.measure, method, optax.sgd(2.0))
    sample = sampler(policy, num_samples=32, max_tokens=T, stop_tokens=())
    act = program.actor(policy, sample)
    run = program.fused(act, learner, verify)
    params = policy.init(None)
    state = learner.init(params, jax.random.key(0), reference=params)
    prompts = fakes.prompts(P, vocab_size=V)
    prompts = jax.tree.map(lambda x: np.broadcast_to(x, (400, *x.shape)), prompts)
    state, _ = jax.jit(run)(state, prompts)
    logp = jax.nn.log_softmax(state.params["logits"])
    return float(jnp.mean(jnp.sum(jnp.exp(logp) * (logp + jnp.log(V)), -1)))


def verify(prompts, samples):
    return Verdict.binary(samples.tokens[..., 0] == 1)


def test_it_holds_the_divergence_at_its_target():
    # The same first coefficient, left alone, is far too weak.
    controller = adv.delayed(adv.kl_controller(TARGET, rate=0.5, initial=0.02))
    held = adv.controlled(adv.assign_constant, controller, adv.sampled_kl)
    assert divergence_after_training(held) == pytest.approx(TARGET, rel=0.2)
    assert divergence_after_training(adv.assign_constant(0.02)) > 5 * TARGET
