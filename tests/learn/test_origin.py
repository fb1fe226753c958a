"""Whose statistics `old` are: microbatches add up for stale samples, too."""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import algorithms, loss, mesh
from rljax import program as loop
from rljax.learn import origin, update
from rljax.rollout.sample import sampler
from rljax.types import Verdict

P, T, V = 4, 4, 8
POLICY = fakes.bandit(P, T, V)
PROMPTS = fakes.prompts(P, vocab_size=V)
ACT = jax.jit(
    loop.actor(POLICY, sampler(POLICY, num_samples=4, max_tokens=T, stop_tokens=()))
)
STAPO = algorithms.stapo(max_prob=0.3, entropy_quantile=0.8)
COVARIANT = adv.algorithm(
    policy=adv.Term(
        advantage=adv.center_by_group(),
        weighting=adv.chain(adv.keep_top_entropy(0.4), adv.token_mean()),
        loss_fn=loss.ppo_clip(),
    )
)


def parameters(seed):
    logits = np.random.default_rng(seed).normal(0, 1.2, (P, T, V))
    return {"logits": jnp.asarray(logits, jnp.float32)}


@functools.cache
def made_once(method, rate, **pieces):
    """(learner, its compiled `learn`), shared by all kinds of samples."""
    made = update.learner(POLICY.measure, method, optax.sgd(rate), **pieces)
    return made, jax.jit(made.learn)


def begin(params, method=STAPO, *, rate=1.0, **pieces):
    """(state at its start, compiled `learn`) of a learner."""
    made, learn = made_once(method, rate, **pieces)
    return made.init(params, jax.random.key(3)), learn


def judged(rollout):
    correct = rollout.samples.tokens[..., 0] % 2 == 0
    return rollout.replace(verdict=Verdict.binary(correct))


def moved(rollout, params, method=STAPO, **pieces):
    state, learn = begin(params, method, **pieces)
    after, _ = learn(state, rollout)
    return jax.tree.map(jnp.subtract, after.params, params)


def by_state(stale, now):
    """Samples of these parameters, of an older state, and of other parameters."""
    state, _ = begin(parameters(now))
    older, _ = begin(parameters(stale))
    return {
        "own": ACT(state, PROMPTS),
        "stale": ACT(older.replace(step=state.step), PROMPTS),
        "averaged": ACT(state.replace(params=parameters(stale)), PROMPTS),
    }


@pytest.mark.parametrize("method", [STAPO, COVARIANT], ids=["stapo", "entropy"])
@pytest.mark.parametrize("kind", ["own", "stale", "averaged"])
def test_microbatches_add_up_whoever_drew_the_samples(method, kind):
    # Taking `old` for `current` would drop other tokens: a gradient off by its size.
    rollout, params = judged(by_state(stale=1, now=2)[kind]), parameters(2)
    want = moved(rollout, params, method)
    assert float(optax.tree.norm(want)) > 0.01
    for pieces in ({"num_microbatches": 2}, {"num_microbatches": 2, "num_lengths": 2}):
        got = moved(rollout, params, method, **pieces)
        chex.assert_trees_all_close(got, want, atol=1e-6)


def test_a_replayed_batch_is_measured_again():
    # Its `old` was this state's at the first time, and is not at the second.
    state, _ = begin(parameters(2))
    rollout = judged(ACT(state, PROMPTS))
    _, whole = begin(parameters(2), rate=30.0)
    _, pieces = begin(parameters(2), rate=30.0, num_microbatches=2)
    after = [state, state]
    for _ in range(2):
        after = [
            learn(s, rollout)[0]
            for learn, s in zip((whole, pieces), after, strict=True)
        ]
        chex.assert_trees_all_close(after[1].params, after[0].params, atol=1e-5)


def forwards(rollout, params):
    """How often a piece was run forward in a step of two microbatches."""
    seen = []

    def measure(params, prompts, samples, reference=None):
        jax.debug.callback(lambda _: seen.append(1), samples.tokens[0, 0, 0])
        return POLICY.measure(params, prompts, samples)

    made = update.learner(measure, STAPO, optax.sgd(1.0), num_microbatches=2)
    jax.jit(made.learn)(made.init(params, jax.random.key(3)), rollout)
    jax.effects_barrier()
    return len(seen)


def test_the_ordinary_loop_pays_no_second_forward_and_stale_samples_do():
    rollouts = by_state(stale=1, now=2)
    assert forwards(judged(rollouts["own"]), parameters(2)) == 2
    assert forwards(judged(rollouts["stale"]), parameters(2)) == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "asks"), [(COVARIANT, True), (algorithms.grpo(), False)]
)
def test_only_algorithms_that_ask_pay_for_fingerprints(method, asks):
    made = update.learner(POLICY.measure, method, optax.sgd(1.0), num_microbatches=2)
    sample = sampler(POLICY, num_samples=4, max_tokens=T, stop_tokens=())
    run = loop.fused(
        loop.actor(POLICY, sample),
        made,
        lambda p, s: Verdict.binary(s.tokens[..., 0] % 2 == 0),
    )
    state = made.init(parameters(2), jax.random.key(3))
    prompts = jax.tree.map(lambda x: x[None], PROMPTS)
    program = run.lower(state, prompts).compile().as_text()
    assert ("2654435761" in program) == asks


def fits(rollout, params):
    return bool(origin.fits(rollout, params))


def test_what_fits_and_what_does_not():
    params = parameters(2)
    rollout = by_state(stale=1, now=2)["own"]
    assert fits(rollout, params)
    assert fits(jax.tree.map(lambda x: x[jnp.array([2, 0])], rollout), params)
    nearly = {"logits": params["logits"].at[3, 3, 7].add(1e-6)}
    swapped = {"logits": params["logits"][:, ::-1]}
    assert not fits(rollout, nearly) and not fits(rollout, swapped)
    old = rollout.old.replace(logp=rollout.old.logp.at[1, 2, 3].add(-1e-6))
    assert not fits(rollout.replace(old=old), params)
    assert not fits(rollout.without("origin"), params)
    assert not fits(rollout.without("old"), params)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8, bool]
)
def test_fingerprints_see_every_kind_of_number(dtype):
    old, zeros = fakes.rollout().old, jnp.zeros((2, 3), dtype)
    one = zeros.at[1, 2].set(jnp.ones((), dtype))
    trees = [(zeros, zeros), (zeros, one), (one, zeros)]
    assert len({tuple(origin.of(tree, old).tolist()) for tree in trees}) == 3


def test_fingerprints_do_not_depend_on_the_mesh():
    devices = mesh.make()
    params, old = jnp.tile(parameters(2)["logits"], (2, 1, 1)), fakes.rollout(8).old
    with jax.set_mesh(devices):
        spread = jax.jit(origin.of)(
            mesh.shard_prompts(params, devices), mesh.shard_prompts(old, devices)
        )
    np.testing.assert_array_equal(jax.device_get(spread), origin.of(params, old))
