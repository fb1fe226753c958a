"""Routing replay: what is recorded, what is replayed, and where gradients go."""

import dataclasses

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms
from rljax.learn import update
from rljax.model import DecoderConfig, Experts, decoder_policy
from rljax.model.experts import Mixture
from rljax.rollout.hint import sample_after_hint
from rljax.rollout.sample import sampler
from rljax.types import NotMeasured, Rollout, Verdict

CONFIG = DecoderConfig(
    vocab_size=16,
    num_layers=2,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=1,
    initializer_std=0.5,
    experts=Experts(num=5, num_chosen=2, d_ff=12),
    unroll=1,
)
# One expert per token, whose weight is 1: the router says which, and nothing else.
SINGLE = dataclasses.replace(
    CONFIG, experts=Experts(num=5, num_chosen=1, d_ff=12), unroll=2
)
PROMPTS = fakes.prompts(4)


def drawn(config, num_slots=None):
    """(policy, params, samples, old)"""
    policy = decoder_policy(config, replay_routes=True)
    params = jax.jit(policy.init)(jax.random.key(0))
    draw = sampler(
        policy,
        **{"num_samples": 4, "max_tokens": 4, "stop_tokens": (3, 6, 11)},
        num_slots=num_slots,
    )
    return policy, params, *jax.jit(draw)(params, PROMPTS, jax.random.key(1))


def with_other_routers(params):
    """The parameters, with routers that choose something else."""
    kernel = params["layers"]["experts"]["router"]["kernel"]
    moved = np.random.default_rng(0).normal(0, 1, kernel.shape).astype(np.float32)
    experts = params["layers"]["experts"] | {"router": {"kernel": jnp.asarray(moved)}}
    return params | {"layers": params["layers"] | {"experts": experts}}


@pytest.fixture(scope="module")
def pair():
    return drawn(CONFIG)


@pytest.fixture(scope="module")
def single():
    return drawn(SINGLE)


def inside(samples, x):
    return np.asarray(x)[np.asarray(samples.mask)]


def test_what_is_recorded_is_what_the_learner_would_choose(pair):
    policy, params, samples, old = pair
    assert samples.behaviour.extra["routes"].shape == (4, 4, 4, 2, 2)
    assert samples.behaviour.extra["routes"].dtype == jnp.uint8
    assert samples.behaviour.row_extra["prompt_routes"].shape == (4, 4, 5, 2, 2)
    assert len(np.unique(samples.behaviour.extra["routes"])) == 5
    now = jax.jit(policy.measure)(params, PROMPTS, samples)
    # Recorded one token late, most tokens would differ.
    np.testing.assert_array_equal(inside(samples, now.extra["router_mismatch"]), 0)
    np.testing.assert_allclose(
        inside(samples, now.logp), inside(samples, old.logp), atol=1e-4
    )
    plain = jax.jit(decoder_policy(CONFIG).measure)(params, PROMPTS, samples)
    np.testing.assert_allclose(
        inside(samples, now.logp), inside(samples, plain.logp), atol=1e-5
    )
    assert "router_mismatch" not in plain.extra


def test_slots_record_what_all_at_once_records(pair):
    _, _, all_at_once, _ = pair
    _, _, in_turn, _ = drawn(CONFIG, num_slots=4)
    for samples in (all_at_once, in_turn):
        assert 1 < float(jnp.mean(samples.length)) < 4  # others take their slots
    np.testing.assert_array_equal(all_at_once.tokens, in_turn.tokens)
    chex.assert_trees_all_equal(
        all_at_once.behaviour.row_extra, in_turn.behaviour.row_extra
    )
    routes = (x.behaviour.extra["routes"] for x in (all_at_once, in_turn))
    np.testing.assert_array_equal(*(inside(all_at_once, x) for x in routes))


def test_recorded_experts_compute_though_the_router_would_take_others(single):
    # All but the choice of the experts is as it was when the samples were drawn. One
    # route of a prompt, a layer or a token in another's place would show.
    policy, params, samples, old = single
    moved = with_other_routers(params)
    now = jax.jit(policy.measure)(moved, PROMPTS, samples)
    plain = jax.jit(decoder_policy(SINGLE).measure)(moved, PROMPTS, samples)
    got, free, want = (inside(samples, x.logp) for x in (now, plain, old))
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert np.mean(np.abs(free - want) > 0.01) > 0.5
    mismatch = inside(samples, now.extra["router_mismatch"])
    assert set(np.unique(mismatch)) <= {0, 0.5, 1} and 0.5 < mismatch.mean() < 1


GATES = [0.73105858, 0.26894142], [0.75026011, 0.24973989], [0.57125308, 0.19015363]


@pytest.mark.parametrize(
    ("normalised", "given", "want"),
    [
        (True, None, GATES[0]),
        (True, [0, 2], GATES[1]),
        (False, [0, 2], GATES[2]),
    ],
)
def test_weights_of_given_experts_by_hand(normalised, given, want):
    # z = [2, 1, .9, -1], K = 2. Indices are replayed, the weights are the router's own
    # (arXiv 2510.11370, SECONDARY): the softmax over the chosen experts, or over all
    # four where weights are not normalised. Of e^2 and e^1 the first has 1 / (1 + e^-1)
    # = .731, of e^2 and e^.9 it has 1 / (1 + e^-1.1) = .750, with slope .750 * .250.
    # Expert n writes (1, n): down is (1, n) / gated(1, 1), of one hidden unit.
    experts = Experts(num=4, num_chosen=2, d_ff=1, normalised=normalised)
    config = dataclasses.replace(CONFIG, d_model=2)
    mixture = Mixture(config, experts, jax.nn.initializers.ones)
    ones = jnp.ones((4, 2, 1))
    down = jnp.stack([jnp.ones(4), jnp.arange(4.0)], -1)[:, None] / jax.nn.silu(1.0)

    def out(z):
        params = {
            "router": {"kernel": jnp.stack([z, jnp.zeros(4)])},
            "gate": {"kernel": ones},
            "up": {"kernel": ones},
            "down": {"kernel": down},
        }
        x = jnp.array([[1.0, 0.0]])
        chosen = None if given is None else jnp.array([given], jnp.uint8)
        return mixture.apply({"params": params}, x, chosen)

    z = jnp.array([2, 1, 0.9, -1])
    (y, own), jacobian = out(z), jax.jacobian(lambda z: out(z)[0][0])(z)
    second = 1 if given is None else given[1]
    np.testing.assert_array_equal(own, [[0, 1]])  # the router's own, whatever is given
    np.testing.assert_allclose(y[0], [sum(want), second * want[1]], rtol=1e-6)
    if normalised and given is not None:  # the sum is 1: the first weight's gradient
        slope = -jacobian[1] / second
        np.testing.assert_allclose(slope, [0.18736988, 0, -0.18736988, 0], atol=1e-7)


def rollout(policy, params, samples):
    draw = np.random.default_rng(1)
    verdict = Verdict.binary(jnp.asarray(draw.integers(0, 2, (4, 4)) > 0))
    old = jax.jit(policy.measure)(params, PROMPTS, samples)
    old = dataclasses.replace(old, extra={})
    return Rollout(prompts=PROMPTS, samples=samples, verdict=verdict, old=old)


def learned(policy, params, made, **pieces):
    learner = update.learner(
        policy.measure, algorithms.minirl(), optax.sgd(1.0), **pieces
    )
    state = learner.init(params, jax.random.key(0))
    return jax.jit(learner.learn)(state, made)


@pytest.mark.slow
def test_pieces_take_their_own_routes_and_the_router_learns(pair):
    policy, params, samples, _ = pair
    made = rollout(policy, params, samples)
    moved = with_other_routers(params)
    whole, metrics = learned(policy, moved, made)
    assert 0.3 < float(metrics["gap/router_mismatch"]) <= 1
    pieces, _ = learned(policy, moved, made, num_microbatches=2, num_lengths=2)
    chex.assert_trees_all_close(pieces.params, whole.params, atol=2e-5)
    router = (x["layers"]["experts"]["router"]["kernel"] for x in (whole.params, moved))
    assert float(jnp.max(jnp.abs(jnp.subtract(*router)))) > 1e-3


def test_without_experts_or_records_there_is_nothing_to_replay(pair):
    policy, params, samples, _ = pair
    dense = dataclasses.replace(CONFIG, experts=None)
    with pytest.raises(ValueError, match="must have a mixture of experts, got a dense"):
        decoder_policy(dense, replay_routes=True)
    bare = samples.replace(behaviour=samples.behaviour.replace(extra={}))
    with pytest.raises(NotMeasured, match="replay_routes=True"):
        jax.eval_shape(policy.measure, params, PROMPTS, bare)
    unsampled = samples.without("behaviour")
    with pytest.raises(NotMeasured, match="demonstrations have none"):
        jax.eval_shape(policy.measure, params, PROMPTS, unsampled)


def test_routes_behind_a_hint_are_refused(pair):
    policy, params, *_ = pair
    data = {"solution": jnp.ones((4, 3), jnp.int32), "hint_length": jnp.ones(4, int)}
    prompts = PROMPTS.replace(data=data)
    draw = sampler(policy, num_samples=2, max_tokens=3, stop_tokens=())

    def measured(params, prompts):
        samples, _ = sample_after_hint(draw)(params, prompts, jax.random.key(0))
        return policy.measure(params, prompts, samples)

    with pytest.raises(ValueError, match=r"recorded of these prompts, \[4, 5\]"):
        jax.eval_shape(measured, params, prompts)


def test_policies_that_do_not_replay_record_nothing():
    for config in (CONFIG, dataclasses.replace(CONFIG, experts=None)):
        policy = decoder_policy(config)
        params = jax.eval_shape(policy.init, jax.random.key(0))
        draw = sampler(policy, num_samples=2, max_tokens=3, stop_tokens=())
        samples, _ = jax.eval_shape(draw, params, PROMPTS, jax.random.key(0))
        assert set(samples.behaviour.extra) == {"kept_mass"}
        assert samples.behaviour.row_extra == {}


def test_the_number_of_an_expert_fits_its_record():
    assert Experts(256, 2, d_ff=1).dtype == jnp.uint8
    assert Experts(257, 2, d_ff=1).dtype == jnp.uint16
