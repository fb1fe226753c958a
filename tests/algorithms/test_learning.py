"""The parts together learn: a toy task from chance to above 0.9, in seconds."""

import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss, program
from rljax.advantage import Term, algorithm, chain, stateless
from rljax.learn import update
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Verdict

P, G, T, V, STEPS = 8, 16, 2, 8, 80
POLICY = fakes.bandit(P, T, V)
PROMPTS = Prompts(
    tokens=np.zeros((STEPS, P, 1), np.int32),
    length=np.ones((STEPS, P), np.int32),
    id=np.tile(np.arange(P, dtype=np.int32), (STEPS, 1)),
)


def verify(prompts, samples):
    """Right if the two tokens sum to the prompt's id modulo V: chance is 1/8."""
    return Verdict.binary(jnp.sum(samples.tokens, -1) % V == prompts.id[:, None])


@functools.cache
def train(sign):
    """Metrics of a run with FADE whose advantages are multiplied by `sign`."""
    return jax.device_get(_train(jnp.float32(sign)))


@jax.jit
def _train(sign):
    flip = stateless(lambda c, r: c.replace(advantage=sign * c.advantage))
    advantage = chain(adv.scale_by_fade(adv.fade_controller(ema_rate=0.1)), flip)
    method = algorithm(
        policy=Term(
            advantage=advantage, weighting=adv.token_mean(), loss_fn=loss.ppo_clip()
        )
    )
    learner = update.learner(POLICY.measure, method, optax.adam(0.2), num_minibatches=2)
    sample = sampler(POLICY, num_samples=G, max_tokens=T, stop_tokens=())
    run = program.fused(program.actor(POLICY, sample), learner, verify)
    state = learner.init(POLICY.init(None), jax.random.key(0))
    return run(state, PROMPTS)[1]


def test_fade_learns_a_toy_task():
    reward = train(1.0)["reward/mean"]
    assert reward[0] == pytest.approx(1 / 8, abs=0.08)
    assert reward[-10:].mean() > 0.9


def test_a_flipped_sign_unlearns_it():
    # A test of learning that this passes, too, would prove nothing.
    assert train(-1.0)["reward/mean"][-10:].mean() < 0.05


def test_fade_follows_the_training_dynamics():
    # Hard and balanced early (alpha up, delta 1); as the policy solves the task and
    # loses entropy, medium and failure-biased late (alpha 1, delta below 1).
    metrics = train(1.0)
    alpha, delta = metrics["policy/alpha"], metrics["policy/delta"]
    assert alpha.max() > 2.5 and alpha[-1] == 1
    assert delta[0] == 1 and delta[-1] < 0.9
    assert metrics["policy/entropy_nats"][0] == pytest.approx(np.log(V), abs=1e-3)
    assert (metrics["policy/fault/reward_out_of_range"].value == 0).all()
    assert metrics["gap/sampler_learner_max"].value.max() < 1e-5
