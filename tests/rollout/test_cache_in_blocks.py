"""Completions longer than a block of the cache: 300 tokens are three blocks."""

import functools

import chex
import fakes
import jax
import pytest

from rljax.rollout.sample import sampler

# The second layer sees all, the first one 90 tokens; their groups are a scan of two.
POLICY = fakes.decoder(num_layers=2, window=90, sliding=(True, False), unroll=1)
PARAMS = fakes.jit(POLICY.init)(jax.random.key(0))
PROMPTS = fakes.prompts(2)


@functools.cache
def draw(num_slots=None):
    options = {"num_samples": 2, "max_tokens": 300, "stop_tokens": ()}
    run = fakes.jit(sampler(POLICY, **options, num_slots=num_slots))
    return run(PARAMS, PROMPTS, jax.random.key(7))


def test_sampled_statistics_are_the_learners():
    # The policy's own pass over whole completions knows neither blocks nor caches.
    samples, old = draw()
    want = fakes.jit(POLICY.measure)(PARAMS, PROMPTS, samples)
    chex.assert_trees_all_close(old, want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_cache_that_goes_round_changes_no_sample(num_slots):
    # Of 4 samples the last one begins where the others end, in the third block.
    (samples, old), (want, want_old) = draw(num_slots), draw()
    chex.assert_trees_all_equal(samples.tokens, want.tokens)
    chex.assert_trees_all_close(old, want_old, atol=1e-4)
