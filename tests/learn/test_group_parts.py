"""Groups cut into parts: the same step, for a device that one prompt would fill."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import (
    BY_LENGTH,
    DECODER,
    ROLLOUT,
    TABLE,
    WIDE,
    fade,
    gradient,
    learner,
    long_and_short,
    parameters,
)

from rljax import advantage as adv
from rljax import mesh
from rljax.advantage import Term, algorithm
from rljax.learn import update


@pytest.mark.parametrize("method", BY_LENGTH.values(), ids=BY_LENGTH)
@pytest.mark.parametrize(("num_micro", "lengths", "groups"), [(1, 1, 4), (4, 2, 2)])
def test_parts_of_groups_add_up(method, num_micro, lengths, groups):
    params = parameters(WIDE)
    rollout = long_and_short(WIDE, params)
    want = gradient(WIDE, method, 1, rollout, params)
    got = gradient(
        WIDE, method, num_micro, rollout, params, lengths=lengths, groups=groups
    )
    chex.assert_trees_all_close(got, want, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"num_group_parts": 2},
        {"num_microbatches": 2, "num_group_parts": 2, "num_minibatches": 2},
    ],
)
def test_a_step_in_parts_of_groups_is_the_step(options):
    minibatches = options.get("num_minibatches", 1)
    optimizer = optax.sgd(0.1, momentum=0.9)  # Adam would divide rounding by rounding

    def step(**options):
        state, learn = learner(fade(), optimizer, **options)
        state, metrics = learn(state, ROLLOUT)
        return state.replace(key=jax.random.key_data(state.key)), metrics

    got, want = step(**options), step(num_minibatches=minibatches)
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_a_piece_holds_a_part_of_the_group_at_its_whole_length():
    params = parameters(WIDE)
    seen = []

    def measure(params, prompts, samples, reference=None):
        jax.debug.callback(lambda x: seen.append(x.shape), samples.tokens)
        return WIDE.measure(params, prompts, samples)

    policy = WIDE._replace(measure=measure)
    rollout = long_and_short(WIDE, params)
    gradient(policy, fade(), 2, rollout, params, groups=4)
    jax.effects_barrier()
    assert seen == [(4, 1, 16)] * 8


def test_parts_of_the_groups_of_a_decoder_on_a_mesh():
    params = parameters(DECODER)
    rollout = long_and_short(DECODER, params)
    want = gradient(DECODER, fade(), 1, rollout, params)
    devices = mesh.make()
    with mesh.using(devices):
        sharded = mesh.shard_prompts(rollout, devices)
        copies = mesh.replicate(params, devices)
        got = gradient(DECODER, fade(), 1, sharded, copies, groups=4)
    got, want = jax.device_get((got, want))
    chex.assert_trees_all_close(got, want, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
def test_a_group_of_one_prompt_takes_the_memory_of_a_part():
    # Without parts the activations of all 8 samples exist at once.
    rows = fakes.rollout(1, 8, 256).replace(prompts=fakes.prompts(1))
    params = jax.eval_shape(DECODER.init, jax.random.key(0))

    def temporaries(groups):
        made = update.learner(
            DECODER.measure, fade(), optax.sgd(0.1), num_group_parts=groups
        )
        state = jax.eval_shape(made.init, params, jax.random.key(0))
        step = jax.jit(made.learn).lower(state, rows.without("current")).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 3


def spread(now, credit, rollout):
    """The variance over the batch: what a row pushes depends on all others."""
    del credit, rollout
    return (now.logp - jnp.mean(now.logp)) ** 2


def compares_rows(**options):
    term = Term(weighting=adv.token_mean(), loss_fn=spread, **options)
    return algorithm(policy=term)


@pytest.mark.parametrize("pieces", [(4, 1), (1, 2), (2, 2)])
def test_a_loss_that_compares_rows_adds_up_where_it_says_so(pieces):
    # Taken as local, each piece has a mean of its own, and no error tells.
    params = parameters(TABLE)
    num_micro, groups = pieces
    want = gradient(TABLE, compares_rows(), 1, ROLLOUT, params)
    wrong = gradient(TABLE, compares_rows(), num_micro, ROLLOUT, params, groups=groups)
    assert np.max(np.abs(wrong[1] - want[1])) > 1e-4
    told = compares_rows(local=False)
    got = gradient(TABLE, told, num_micro, ROLLOUT, params, groups=groups)
    chex.assert_trees_all_close(got, want, atol=1e-6)


def test_a_controlled_algorithm_is_as_local_as_what_is_controlled():
    for local in (True, False):
        made = adv.controlled_algorithm(
            lambda value, local=local: compares_rows(local=local),
            adv.ema(0.1),
            lambda credits, rollout: 1.0,
        )
        assert made.local() == local


def test_a_group_must_divide_into_parts():
    state, learn = learner(fade(), num_lengths=2, num_group_parts=3)
    with pytest.raises(ValueError, match=r"num_lengths \* num_group_parts = 6, got 2"):
        learn(state, ROLLOUT)
