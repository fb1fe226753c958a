"""Learning from the undesirable: states of layers, steps that harm, the regulariser."""

import dataclasses

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms, data
from rljax.learn import consistency, update
from rljax.model import DecoderConfig, decoder_policy, probe
from rljax.policy import frozen
from rljax.rollout import mixed
from rljax.types import Rollout

CONFIG = DecoderConfig(
    vocab_size=9,
    num_layers=1,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=24,
    initializer_std=0.5,
)
POLICY = decoder_policy(CONFIG)  # the learners' programs compile twice as fast
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
DEEP = decoder_policy(dataclasses.replace(CONFIG, num_layers=2))
DEEP_PARAMS = jax.jit(DEEP.init)(jax.random.key(0))
STATES = jax.jit(probe.recorded(DEEP.measure))


def shown(seed, num_prompts=4, num_tokens=4):
    """Prompts with one demonstration each, of mixed lengths."""
    draw = np.random.default_rng(seed)
    shape = (num_prompts, num_tokens)
    length = draw.integers(1, num_tokens + 1, num_prompts)
    completion = {
        "completion": draw.integers(0, 9, shape).astype(np.int32),
        "completion_mask": np.arange(num_tokens) < length[:, None],
    }
    prompts = fakes.prompts(num_prompts, vocab_size=9, seed=seed)
    return jax.tree.map(jnp.asarray, prompts.replace(data=completion))


def beside(prompts, aside):
    return prompts.replace(data={**prompts.data, "aside": aside})


PROMPTS = beside(shown(1), shown(2))
SAMPLES, _ = mixed.stored_answers()(None, PROMPTS, None)


# Looking into the layers.


def test_recorded_states_are_those_of_the_decoder():
    # First and last of them are known; an off-by-one would shift them by a token.
    out, states = STATES(DEEP_PARAMS, PROMPTS, SAMPLES)
    hidden, plain = jax.jit(lambda *args: (DEEP.hidden(*args), DEEP.measure(*args)))(
        DEEP_PARAMS, PROMPTS, SAMPLES
    )
    assert [x.shape for x in states] == [(4, 1, 4, 16)] * 3
    np.testing.assert_allclose(states[-1], hidden, atol=1e-5)
    chex.assert_trees_all_close(out, plain, atol=1e-5)
    table = DEEP_PARAMS["embed"]["embedding"]
    last = PROMPTS.tokens[jnp.arange(4), PROMPTS.length - 1]
    fed = jnp.concatenate([last[:, None], SAMPLES.tokens[:, 0, :-1]], 1)
    np.testing.assert_allclose(states[0][:, 0], table[fed], atol=1e-6)


def test_completions_of_one_token_have_states_too():
    # Only the prompts' pass runs then.
    one = SAMPLES.replace(tokens=SAMPLES.tokens[..., :1], mask=SAMPLES.mask[..., :1])
    short = STATES(DEEP_PARAMS, PROMPTS, one)[1]
    full = STATES(DEEP_PARAMS, PROMPTS, SAMPLES)[1]
    chex.assert_trees_all_close(short, tuple(x[:, :, :1] for x in full), atol=1e-5)


def test_steering_turns_vectors_and_keeps_their_norm():
    # Norm 5 stays; adding 0.1 of the unit vector would give norm 5.06.
    z, d = jnp.asarray([3.0, 4.0]), jnp.asarray([1.0, 0.0])
    got = probe.turned(z, d, 0.1)
    np.testing.assert_allclose(got, [3.2925230, 3.7628835], rtol=1e-6)
    np.testing.assert_allclose(probe.turned(z, 7 * d, 0.1), got, rtol=1e-6)
    zero = jax.grad(lambda z: jnp.sum(probe.turned(z, d, 0.1)))(jnp.zeros(2))
    assert bool(jnp.all(jnp.isfinite(zero)))


def test_steering_reaches_every_layer_and_leaves_the_embedding():
    @jax.jit
    def run(vectors):
        measure = probe.steered(probe.recorded(DEEP.measure), vectors, 0.5)
        return measure(DEEP_PARAMS, PROMPTS, SAMPLES)[1]

    plain = STATES(DEEP_PARAMS, PROMPTS, SAMPLES)[1]
    directions = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.float32)
    none = run(jnp.zeros((2, 16)))  # a zero vector has no direction
    chex.assert_trees_all_close(none, plain, atol=1e-5)
    second = run(directions.at[0].set(0))
    np.testing.assert_allclose(second[1], plain[1], atol=1e-5)
    assert float(jnp.max(jnp.abs(second[2] - plain[2]))) > 1e-2
    both = run(directions)
    np.testing.assert_allclose(both[0], plain[0], atol=1e-6)
    assert float(jnp.max(jnp.abs(both[1] - plain[1]))) > 1e-2


def test_layers_in_turn_are_seen_and_steered_as_side_by_side():
    # Two trips of two layers: numbered by trip or by member alone, layers would share a
    # direction, and states come back in another order.
    deep = dataclasses.replace(CONFIG, num_layers=4)
    params = jax.jit(decoder_policy(deep).init)(jax.random.key(0))
    directions = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16)), jnp.float32)

    def run(unroll):
        policy = decoder_policy(dataclasses.replace(deep, unroll=unroll))
        measure = probe.steered(probe.recorded(policy.measure), directions, 0.5)
        return jax.jit(measure)(params, PROMPTS, SAMPLES)

    got, want = run(2), run(4)
    assert [x.shape for x in got[1]] == [(4, 1, 4, 16)] * 5
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_a_policy_without_layers_is_refused():
    bandit = fakes.bandit(4, 4, 9)
    with pytest.raises(ValueError, match="runs a decoder"):
        probe.recorded(bandit.measure)(bandit.init(None), PROMPTS, SAMPLES)


# The regulariser by hand.


def test_the_undesirable_step_by_hand():
    got = consistency.undesirable_step(jnp.asarray([3.0, 4.0]), 0.1)
    np.testing.assert_allclose(got, [0.06, 0.08], rtol=1e-6)
    # One norm over all arrays: per array both would be 0.1.
    got = consistency.undesirable_step(
        {"a": jnp.asarray(3.0), "b": jnp.asarray(4.0)}, 1
    )
    np.testing.assert_allclose((got["a"], got["b"]), (0.6, 0.8), rtol=1e-6)
    np.testing.assert_array_equal(consistency.undesirable_step(jnp.zeros(2), 0.1), 0)


def test_the_mean_square_by_hand():
    h, moved = jnp.asarray([1.0, 2.0]), jnp.asarray([1.5, 1.0])
    np.testing.assert_allclose(consistency.mean_square([h], [moved]), 0.625)
    # Mean over layers, not sum; the second layer agrees.
    np.testing.assert_allclose(consistency.mean_square([h, h], [moved, h]), 0.3125)


def test_the_scalar_model_by_hand():
    # theta 2, h = theta x, loss 0.55, gradient -2. With the clean side not
    # stopped the consistency's gradient would be 0, with delta differentiated another.
    def total(theta):
        sft = lambda t: 0.5 * (t - 3.0) ** 2  # noqa: E731
        delta = consistency.undesirable_step(
            jax.grad(sft)(jax.lax.stop_gradient(theta)), 0.1
        )
        drift = consistency.mean_square([theta[None]], [(theta + delta)[None]])
        return sft(theta) + 5 * drift

    loss, grad = jax.value_and_grad(total)(jnp.asarray(2.0))
    np.testing.assert_allclose((loss, grad), (0.55, -2.0), rtol=1e-5)


# The learners.


RECORDED = probe.recorded(POLICY.measure)


def steer(vectors):
    return probe.steered(RECORDED, vectors, 0.1)


def perturbing(method, rate, *, radius=0.1, **pieces):
    measure = consistency.perturbed_measure(RECORDED)
    learner = update.learner(measure, method, optax.sgd(rate), **pieces)
    return consistency.perturbing_learner(
        learner, RECORDED, mixed.stored_answers(), radius=radius
    )


def steering(method, rate, vector_optimizer):
    measure = consistency.steered_measure(RECORDED, steer)
    return consistency.steering_learner(
        update.learner(measure, method, optax.sgd(rate)),
        steer,
        mixed.stored_answers(),
        shape=(1, 16),
        vector_optimizer=vector_optimizer,
    )


def start(learner, params=PARAMS):
    return learner.init(jax.tree.map(jnp.copy, params), jax.random.key(3))


def rollout_of(prompts):
    samples, _ = mixed.stored_answers()(None, prompts, None)
    return Rollout(prompts=prompts, samples=samples)


@pytest.mark.parametrize("trained", [None, ("layers", "q")], ids=["all", "some"])
def test_perturbed_weights_learn_the_papers_objective_in_microbatches(trained):
    # The same objective written down at once; delta from the whole aside batch, so that
    # microbatches add up: one delta for each would miss by far more. Of frozen weights,
    # as the base of LoRA adapters, neither delta nor update has a part.
    weight, radius = 5.0, 0.1
    mask = SAMPLES.mask
    params, rest = PARAMS, None
    if trained is not None:
        params, rest = frozen.split(PARAMS, lambda path: path[:2] == trained)

    def mean(x):
        return jnp.sum(jnp.where(mask, x, 0)) / jnp.sum(mask)

    def harm(params):
        aside = PROMPTS.data["aside"]
        rows, _ = mixed.stored_answers()(None, aside, None)
        logp = POLICY.measure(frozen.joined(params, rest), aside, rows).logp
        return -jnp.sum(jnp.where(rows.mask, logp, 0)) / jnp.sum(rows.mask)

    def objective(params, delta):
        now, clean = RECORDED(frozen.joined(params, rest), PROMPTS, SAMPLES)
        there = frozen.joined(jax.tree.map(jnp.add, params, delta), rest)
        _, moved = RECORDED(there, PROMPTS, SAMPLES)
        drift = [
            jnp.mean((jax.lax.stop_gradient(a) - b) ** 2, -1)
            for a, b in zip(clean, moved, strict=True)
        ]
        return -mean(now.logp) + weight * mean(sum(drift) / len(drift))

    @jax.jit
    def want(params):
        loss, g = jax.value_and_grad(harm)(params)
        norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(g)))
        delta = jax.tree.map(lambda x: radius * x / norm, g)
        return jax.grad(objective)(params, delta), loss

    learner = perturbing(algorithms.lfu(weight), 1.0, radius=radius, num_microbatches=2)
    state = learner.init(params, jax.random.key(3), None, rest)
    after, metrics = jax.jit(learner.learn)(state, rollout_of(PROMPTS))
    got = jax.tree.map(jnp.subtract, params, after.params)
    grads, loss = want(params)
    chex.assert_trees_all_close(got, grads, atol=2e-5, rtol=1e-3)
    np.testing.assert_allclose(metrics["consistency/aside_nll_nats"], loss, rtol=1e-5)
    chex.assert_trees_all_equal(after.frozen, rest)


def test_steering_harms_through_frozen_weights_too():
    learner = steering(algorithms.lfu(0.1), 0.1, optax.adam(0.1))
    trained, rest = frozen.split(PARAMS, lambda path: path[:2] == ("layers", "q"))
    some = learner.init(trained, jax.random.key(3), None, rest)
    after, metrics = jax.jit(learner.learn)(some, rollout_of(PROMPTS))
    whole, of_whole = jax.jit(learner.learn)(start(learner), rollout_of(PROMPTS))
    name = "consistency/aside_nll_nats"
    np.testing.assert_allclose(metrics[name], of_whole[name], rtol=1e-6)
    chex.assert_trees_all_close(after.algorithm, whole.algorithm, rtol=1e-4)
    chex.assert_trees_all_close(
        after.params["layers"]["q"], whole.params["layers"]["q"], rtol=1e-4, atol=1e-6
    )


def test_steering_vectors_harm_persist_and_regularise():
    # The policy stands still: what moves is the vectors' doing.
    learner = steering(algorithms.lfu(0.1), 0.0, optax.adam(0.1))
    state = start(learner)
    assert state.algorithm.vectors.shape == (1, 16)
    run = jax.jit(
        lambda s: jax.lax.scan(
            lambda s, _: learner.learn(s, rollout_of(PROMPTS)), s, length=20
        )
    )
    after, metrics = run(state)
    nll = metrics["consistency/aside_nll_nats"]
    assert nll[-1] > nll[0] + 0.05  # descent instead of ascent would lower it
    assert bool(jnp.all(after.algorithm.vectors != state.algorithm.vectors))
    chex.assert_trees_all_equal(after.params, state.params)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_steering_vectors_that_would_not_be_finite_stay():
    # They have an optimiser of their own; a NaN would stay for the whole run.
    learner = steering(algorithms.lfu(0.1), 0.0, optax.adam(float("nan")))
    state = start(learner)
    after, metrics = jax.jit(learner.learn)(state, rollout_of(PROMPTS))
    chex.assert_trees_all_equal(after.algorithm, state.algorithm)
    assert metrics["update/refused"] == 0


@pytest.mark.slow
def test_the_gradient_of_steering_reaches_the_clean_side_alone():
    learner = steering(algorithms.lfu(2.0), 1.0, optax.sgd(0.0))
    state = start(learner)
    vectors = state.algorithm.vectors

    def objective(params):
        now, clean = RECORDED(params, PROMPTS, SAMPLES)
        run = steer(vectors)
        _, there = run(jax.lax.stop_gradient(params), PROMPTS, SAMPLES)
        drift = sum(
            jnp.mean((a - b) ** 2, -1) for a, b in zip(clean, there, strict=True)
        )
        value = jnp.where(SAMPLES.mask, -now.logp + 2.0 * drift / 2, 0)
        return jnp.sum(value) / jnp.sum(SAMPLES.mask)

    state, _ = jax.jit(learner.learn)(state, rollout_of(PROMPTS))
    got = jax.tree.map(jnp.subtract, PARAMS, state.params)
    want = jax.jit(jax.grad(objective))(PARAMS)
    chex.assert_trees_all_close(got, want, atol=2e-5, rtol=1e-3)


def test_the_term_needs_its_learner_and_the_learner_its_batch():
    plain = update.learner(POLICY.measure, algorithms.lfu(), optax.sgd(0.1))
    with pytest.raises(ValueError, match="perturbing_learner"):
        jax.eval_shape(plain.learn, start(plain), rollout_of(PROMPTS))
    alone = update.learner(
        consistency.perturbed_measure(RECORDED), algorithms.lfu(), optax.sgd(0.1)
    )
    with pytest.raises(ValueError, match="undesirable step, got None; wrap"):
        jax.eval_shape(alone.learn, start(alone), rollout_of(PROMPTS))
    learner = perturbing(algorithms.lfu(), 0.1)
    with pytest.raises(ValueError, match="with_aside"):
        jax.eval_shape(learner.learn, start(learner), rollout_of(shown(1)))
    with pytest.raises(ValueError, match="radius"):
        perturbing(algorithms.lfu(), 0.1, radius=0)


def test_the_reference_of_the_run_survives_an_undesirable_step():
    # The step takes its place while the learner runs.
    learner = perturbing(algorithms.lfu(), 0.1)
    state = start(learner).replace(reference=PARAMS)
    after, _ = jax.jit(learner.learn)(state, rollout_of(PROMPTS))
    chex.assert_trees_all_equal(after.reference, PARAMS)


def test_the_stream_draws_an_independent_batch():
    train = jax.tree.map(np.asarray, shown(5, num_prompts=12))
    stream = data.stream(
        train,
        num_prompts=4,
        seed=0,
        steps_per_dispatch=2,
        map_fn=consistency.with_aside(train),
    )
    batch = next(stream)
    aside = batch.data["aside"]
    assert aside.id.shape == (2, 4) and aside.data["completion"].shape == (2, 4, 4)
    assert (aside.id != batch.id).any()
    where = {int(i): k for k, i in enumerate(train.id)}
    rows = [where[int(i)] for i in aside.id.ravel()]
    np.testing.assert_array_equal(
        aside.data["completion"].reshape(8, 4), train.data["completion"][rows]
    )
