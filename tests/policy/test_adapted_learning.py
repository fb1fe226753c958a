"""Transforms together in one program: LoRA, a value head, a reference that follows."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import xla

from rljax import algorithms, program
from rljax.learn import origin, reference, update
from rljax.policy import frozen, lora, with_value_head
from rljax.policy.lora import Lora
from rljax.rollout.sample import sampler
from rljax.types import Verdict

SPEC = Lora(rank=2, alpha=8, targets=("q", "down"))


def trains(path):
    return lora.is_adapter(path) or path[0] == "value"


def verify(prompts, samples):
    del prompts
    return Verdict.binary(samples.tokens[..., 0] % 2 == 0)


@pytest.fixture(scope="module")
def case():
    """(policy, learner, act, the state before), params as a PPO run with LoRA has."""
    policy = with_value_head(lora.adapted(fakes.decoder(), SPEC), d_model=32)
    learner = reference.following(
        update.learner(
            policy.measure,
            algorithms.ppo(),
            optax.adam(0.02),
            num_microbatches=2,
        ),
        reference.averaged(decay=0.75),
    )
    sample = sampler(policy, num_samples=4, max_tokens=3, stop_tokens=(1,))
    act = program.actor(policy, sample, measure_old=policy.measure)

    def begin(key):
        params, kept = frozen.split(policy.init(key), trains)
        copy = jax.tree.map(jnp.copy, params)
        return learner.init(params, key, copy, kept)

    return policy, learner, act, jax.jit(begin)(jax.random.key(0))


def num_bytes(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree) if x.ndim)


def test_only_what_is_trained_has_moments_and_a_reference(case):
    state = case[3]
    # q [32, 32] and down [48, 32] of rank 2, a value head of 32 + 1: float32.
    trained = 4 * (2 * (32 + 32) + 2 * (48 + 32) + 32)
    assert num_bytes(state.params) == trained
    assert num_bytes(state.optimizer) == 2 * trained
    assert num_bytes(state.reference) == trained
    assert num_bytes(state.frozen) > 20 * trained


def test_two_steps_move_adapters_head_and_reference_and_nothing_else(case):
    _, learner, act, state = case
    run = program.fused(act, learner, verify)
    prompts = jax.tree.map(lambda x: jnp.stack([x] * 2), fakes.prompts())
    # What the tests share is not donated. NumPy's views would keep buffers in place.
    state = jax.tree.map(jnp.copy, state)
    start = jax.tree.map(np.array, (state.params, state.frozen))
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state.frozen)]
    after, metrics = run(state, prompts)
    np.testing.assert_array_equal(metrics["update/refused"], 0)
    jax.tree.map(np.testing.assert_array_equal, after.frozen, start[1])
    # The base is given back where it lay: donated, but not copied.
    found = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(after.frozen)]
    assert found == places
    moved = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b))), after.params, start[0]
    )
    assert min(jax.tree.leaves(moved)) > 0
    # Of the first step's parameters the average has .75 * .25, of the second's .25: it
    # lies behind the policy, and no longer where it began.
    behind, begun = after.reference["value"]["bias"], start[0]["value"]["bias"]
    assert abs(behind - begun) < abs(after.params["value"]["bias"] - begun)
    assert float(behind) != float(begun)


def test_the_actor_measures_the_reference_beside_the_base(case):
    policy, _, act, state = case
    rollout = jax.jit(act, compiler_options=xla.AS_USERS)(state, fakes.prompts())
    # Both begin as the base: with the base left out nothing could be measured at all.
    mask = rollout.samples.mask
    np.testing.assert_array_equal(rollout.reference.logp[mask], rollout.old.logp[mask])
    assert bool(origin.fits(rollout, state.params))
    # A moved policy no longer fits; its base has no part in that.
    moved = jax.tree.map(lambda x: x + 1, state.params)
    assert not bool(origin.fits(rollout, moved))
    del policy
