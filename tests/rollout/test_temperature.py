"""Temperature: what is trained is softmax(logits / T), proved by enumeration."""

import dataclasses
import itertools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xla

from experiments import addition
from rljax import advantage as adv
from rljax import evaluate, loss, program
from rljax.learn import update
from rljax.policy import against_reference, with_value_head
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Rollout, Samples, Verdict

V, T = 3, 2
EVERY = jnp.array(list(itertools.product(range(V), repeat=T)), jnp.int32)  # [9, 2]
PROMPTS = Prompts(
    tokens=jnp.array([[0, 1], [2, 0]], jnp.int32),
    length=jnp.array([2, 1], jnp.int32),
    id=jnp.arange(2, dtype=jnp.int32),
)
REWARD = jnp.asarray(np.random.default_rng(0).normal(size=(2, V**T)), jnp.float32)


def completions():
    tokens = jnp.broadcast_to(EVERY, (2, *EVERY.shape))
    return Samples(
        tokens=tokens,
        mask=jnp.ones(tokens.shape, bool),
        source=jnp.zeros(tokens.shape[:2], jnp.int32),
        finished=jnp.ones(tokens.shape[:2], bool),
    )


def expected_reward(plain, params, temperature):
    """sum over completions of p r, with p of softmax(logits / T)."""
    samples = completions()
    logits = plain.logits(params, plain.hidden(params, PROMPTS, samples))
    logp = jax.nn.log_softmax(logits / temperature)
    chosen = jnp.take_along_axis(logp, samples.tokens[..., None], -1)[..., 0]
    return jnp.sum(jnp.exp(jnp.sum(chosen, -1)) * REWARD)


def expected_gradient(policy, loss_fn, params):
    """The library's policy gradient, summed over all completions with their p.

    The reward is p r, so each completion counts as often as it would be drawn.
    """
    samples = completions()
    old = policy.measure(params, PROMPTS, samples)
    p = jnp.exp(jnp.sum(old.logp, -1))
    verdict = Verdict.binary(REWARD > 0).replace(reward=p * REWARD)
    rollout = Rollout(prompts=PROMPTS, samples=samples, verdict=verdict, old=old)
    method = adv.algorithm(
        policy=adv.Term(weighting=adv.constant_length(T), loss_fn=loss_fn)
    )
    count = 2 * V**T * T  # what the reduction divides by
    made = update.learner(policy.measure, method, optax.sgd(float(count)))
    state, _ = made.learn(made.init(params, jax.random.key(0)), rollout)
    return jax.tree.map(jnp.subtract, state.params, params)


POLICIES = {
    "bandit": lambda temperature: fakes.bandit(2, T, V, temperature),
    "decoder": lambda temperature: fakes.decoder(V, temperature=temperature),
    "decoder in chunks": lambda temperature: fakes.decoder(
        V, max_logits=20, temperature=temperature
    ),
}


def parameters(policy):
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    return jax.tree.map(
        lambda x: jnp.asarray(draw.normal(0, 0.7, x.shape), jnp.float32), shapes
    )


@pytest.mark.parametrize(
    ("name", "loss_fn"),
    [
        ("bandit", loss.reinforce()),
        ("bandit", loss.ppo_clip()),
        ("decoder", loss.ppo_clip()),
        ("decoder in chunks", loss.ppo_clip()),
    ],
)
def test_the_expected_policy_gradient_is_that_of_the_expected_reward(name, loss_fn):
    # A learner that measures at temperature 1 would be wrong by more than a tenth.
    make = POLICIES[name]
    plain = make(1.0)
    params = parameters(plain)
    exact = jax.jit(
        jax.grad(lambda p, t: expected_reward(plain, p, t)), static_argnums=1
    )
    got = jax.jit(lambda p: expected_gradient(make(0.6), loss_fn, p))(params)
    want = exact(params, 0.6)
    chex.assert_trees_all_close(got, want, atol=2e-5)
    other = jax.tree.map(jnp.subtract, exact(params, 1.0), want)
    assert float(optax.tree.norm(other) / optax.tree.norm(want)) > 0.1


def test_everything_that_measures_a_policy_measures_it_at_its_temperature():
    policy, plain = fakes.decoder(V, temperature=2.5), fakes.decoder(V)
    params, reference = (
        parameters(plain),
        jax.tree.map(lambda x: 0.5 * x, parameters(plain)),
    )
    samples = completions()

    def distribution(params):
        logits = plain.logits(params, plain.hidden(params, PROMPTS, samples))
        return jax.nn.log_softmax(logits / 2.5)

    now, ref = distribution(params), distribution(reference)
    logp = jnp.take_along_axis(now, samples.tokens[..., None], -1)[..., 0]
    entropy = -jnp.sum(jnp.exp(now) * now, -1)
    headed = with_value_head(policy, d_model=32)
    valued = {
        "policy": params,
        "value": {"kernel": jnp.zeros(32), "bias": jnp.zeros(())},
    }
    exact = against_reference(policy)(params, PROMPTS, samples, reference)
    for got in (
        policy.measure(params, PROMPTS, samples),
        headed.measure(valued, PROMPTS, samples),
        exact,
    ):
        chex.assert_trees_all_close((got.logp, got.entropy), (logp, entropy), atol=1e-5)
    kl = jnp.sum(jnp.exp(now) * (now - ref), -1)
    chex.assert_trees_all_close(exact.extra["kl_reverse"], kl, atol=1e-5)


def test_the_loop_trains_what_it_samples():
    # Their gap would be the temperature's, 0.3 nats here, with T at one side alone.
    policy = fakes.bandit(2, T, V, 0.5)
    sample = sampler(policy, num_samples=8, max_tokens=T, stop_tokens=())
    method = adv.algorithm(
        policy=adv.Term(weighting=adv.token_mean(), loss_fn=loss.ppo_clip())
    )
    made = update.learner(policy.measure, method, optax.sgd(1.0))
    run = program.fused(
        program.actor(policy, sample),
        made,
        lambda p, s: Verdict.binary(s.tokens[..., 0] == 1),
    )
    prompts = jax.tree.map(lambda x: x[None], PROMPTS)
    state = made.init(parameters(policy), jax.random.key(0))
    _, metrics = run(state, prompts)
    assert float(metrics["gap/sampler_learner_max"].value[0]) < 1e-5


def test_a_traced_temperature_is_the_same_policy():
    params = parameters(fakes.decoder(V))

    def measure(temperature):
        policy = fakes.decoder(V, temperature=temperature)
        return policy.measure(params, PROMPTS, completions()).logp

    compiled = jax.jit(jax.vmap(measure), compiler_options=xla.AS_USERS)
    got = compiled(jnp.array([1.0, 0.6]))
    chex.assert_trees_all_close(got, jnp.stack([measure(1.0), measure(0.6)]), atol=1e-6)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, float("nan"), float("inf")])
def test_no_policy_has_such_a_temperature(temperature):
    with pytest.raises(ValueError, match="temperature must"):
        fakes.decoder(V, temperature=temperature)


@pytest.mark.parametrize("name", ["temperature", "evaluation_temperature"])
def test_an_experiment_at_temperature_0_is_refused_before_anything_is_made(name):
    with pytest.raises(ValueError, match=r"temperature must lie in \(0"):
        addition.build(dataclasses.replace(addition.QUICK, **{name: 0.0}))


def test_evaluation_has_a_temperature_of_its_own_and_says_it():
    config = dataclasses.replace(
        addition.QUICK, temperature=0.5, evaluation_temperature=0.8
    )
    evaluation = addition.build(config)[-1].evaluation
    stage = evaluate.Stage(np.ones((64, 8), bool), None)
    table = evaluation.tables({"now": stage})[0]
    assert "temperature 0.8" in str(table)
