"""The KL controller by its published number, and in a closed loop."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss, program
from rljax.learn import update
from rljax.rollout.sample import sampler
from rljax.types import Verdict

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
    state, _ = fakes.jit(run)(state, prompts)
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
