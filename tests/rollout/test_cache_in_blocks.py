"""Completions longer than a block of the cache: 100 tokens are four blocks of 25."""

import functools

import chex
import fakes
import jax
import pytest

from rljax import mesh
from rljax.rollout.sample import sampler

# The second layer sees all, the first one 30 tokens. They are a scan of two, whose
# caches are written after it, or side by side, their caches written first.
POLICY = {
    unroll: fakes.decoder(num_layers=2, window=30, sliding=(True, False), unroll=unroll)
    for unroll in (1, 2)
}
PARAMS = jax.jit(POLICY[1].init)(jax.random.key(0))
PROMPTS = fakes.prompts(2)


@functools.cache
def draw(unroll, num_slots=None):
    options = {"num_samples": 2, "max_tokens": 100, "stop_tokens": ()}
    run = jax.jit(sampler(POLICY[unroll], **options, num_slots=num_slots))
    return run(PARAMS, PROMPTS, jax.random.key(7))


@pytest.mark.parametrize("unroll", [1, 2])
def test_sampled_statistics_are_the_learners(unroll):
    # The policy's own pass over whole completions knows neither blocks nor caches.
    samples, old = draw(unroll)
    want = jax.jit(POLICY[1].measure)(PARAMS, PROMPTS, samples)
    chex.assert_trees_all_close(old, want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, 2])
@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_cache_that_goes_round_changes_no_sample(unroll, num_slots):
    # Of 4 samples the last one begins where the others end, in the fourth block.
    (samples, old), (want, want_old) = draw(unroll, num_slots), draw(unroll)
    chex.assert_trees_all_equal(samples.tokens, want.tokens)
    chex.assert_trees_all_close(old, want_old, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, 2])
def test_a_mesh_that_splits_heads_changes_no_sample(unroll):
    # How many tokens there are is the largest of all rows, on whatever device they lie.
    place = mesh.make(jax.devices()[:4], data=2, tensor=2)
    options = {"num_samples": 2, "max_tokens": 100, "stop_tokens": ()}
    run = jax.jit(sampler(POLICY[unroll], **options))
    with mesh.using(place):
        params = mesh.replicate(PARAMS, place)
        prompts = mesh.shard_prompts(PROMPTS, place)
        samples, old = jax.device_get(run(params, prompts, jax.random.key(7)))
    want, want_old = draw(unroll)
    chex.assert_trees_all_equal(samples.tokens, want.tokens)
    chex.assert_trees_all_close(old, want_old, atol=1e-4)
