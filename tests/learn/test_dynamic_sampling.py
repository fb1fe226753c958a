"""Dynamic sampling trains on mixed groups alone, the first ones, and counts them."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms, mesh, program
from rljax.learn import update
from rljax.learn.dynamic_sampling import dynamic_sampling
from rljax.rollout.sample import sampler
from rljax.types import Verdict

P, KEPT, T = 16, 8, 3
POLICY = fakes.bandit(P, T, 4)
LEARNER = update.learner(
    POLICY.measure, algorithms.dapo(max_tokens=8, buffer=2), optax.sgd(1.0)
)


def rollout(*counts):
    """Groups of 4 with so many right answers each."""
    right = np.arange(4) < np.asarray(counts)[:, None]
    rows = fakes.rollout(len(counts), 4, T, reward=right)
    rows = rows.replace(prompts=fakes.prompts(len(counts)))
    tokens = rows.samples.tokens % 4
    rows = rows.replace(samples=rows.samples.replace(tokens=tokens))
    return rows.replace(
        old=POLICY.measure(POLICY.init(None), rows.prompts, rows.samples)
    )


MIXED = np.array([1, 2, 4, 6, 7, 9, 10, 12, 13])  # one more than are kept
COUNTS = np.where(
    np.isin(np.arange(P), MIXED), 1 + np.arange(P) % 3, 4 * (np.arange(P) % 2)
)


def learn(learner, rows):
    state = learner.init(POLICY.init(None), jax.random.key(0))
    return jax.jit(learner.learn)(state, rows)


def test_it_trains_on_the_first_mixed_groups():
    rows = rollout(*COUNTS)
    state, metrics = learn(dynamic_sampling(LEARNER, KEPT), rows)
    assert metrics["samples/mixed_kept"] == 1
    first = jax.tree.map(lambda x: x[MIXED[:KEPT]], rows)
    want, _ = learn(LEARNER, first)
    chex.assert_trees_all_close(state.params, want.params, atol=1e-6)
    assert metrics["policy/dropped_share"] == 0


def test_what_is_missing_is_filled_with_groups_that_teach_nothing():
    counts = np.where(np.arange(P) < 3, 2, 0)
    state, metrics = learn(dynamic_sampling(LEARNER, KEPT), rollout(*counts))
    assert metrics["samples/mixed_kept"] == pytest.approx(3 / KEPT)
    want, _ = learn(LEARNER, jax.tree.map(lambda x: x[:3], rollout(*counts)))
    chex.assert_trees_all_close(state.params, want.params, atol=1e-6)


def test_on_a_mesh_it_is_the_same():
    rows = rollout(*COUNTS)
    want, _ = learn(dynamic_sampling(LEARNER, KEPT), rows)
    place = mesh.make()
    with jax.set_mesh(place):
        got, _ = learn(dynamic_sampling(LEARNER, KEPT), mesh.shard_prompts(rows, place))
    chex.assert_trees_all_close(
        jax.device_get(got.params), jax.device_get(want.params), atol=1e-6
    )


def test_fewer_prompts_than_are_kept_are_refused():
    with pytest.raises(ValueError, match="num_prompts = 17, got a rollout of 16"):
        learn(dynamic_sampling(LEARNER, 17), rollout(*COUNTS))
    with pytest.raises(ValueError, match="num_prompts"):
        dynamic_sampling(LEARNER, 0)


@pytest.mark.slow
def test_it_learns_more_per_update_where_few_groups_are_mixed():
    # One answer of 64 is right, 4 samples: of 8 groups half a one is mixed.
    def verify(prompts, samples):
        return Verdict.binary(jnp.all(samples.tokens == 1, -1))

    def reward(num_prompts):
        sample = sampler(POLICY, num_samples=4, max_tokens=T, stop_tokens=())
        learner = dynamic_sampling(LEARNER, KEPT)
        run = program.fused(program.actor(POLICY, sample), learner, verify)
        state = learner.init(POLICY.init(None), jax.random.key(0))
        draw = np.random.default_rng(0)
        ids = np.stack([draw.permutation(P)[:num_prompts] for _ in range(100)])
        prompts = fakes.prompts(num_prompts)
        prompts = jax.tree.map(lambda x: np.tile(x, (100, *[1] * x.ndim)), prompts)
        state, _ = run(state, prompts.replace(id=ids.astype(np.int32)))
        p = jax.nn.softmax(state.params["logits"])[..., 1]
        return float(jnp.mean(jnp.prod(p, -1)))

    assert reward(P) > 1.3 * reward(KEPT) > 1.3 / 64
