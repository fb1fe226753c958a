"""Pieces by length: the same gradient, from rows that are cut where they end."""

import chex
import jax
import numpy as np
import optax
import pytest
from update_cases import (
    BY_LENGTH,
    DECODER,
    ROLLOUT,
    WIDE,
    fade,
    gradient,
    learner,
    long_and_short,
    parameters,
)

from rljax import mesh


@pytest.mark.parametrize("method", BY_LENGTH.values(), ids=BY_LENGTH)
@pytest.mark.parametrize(
    ("num_micro", "lengths"),
    [pytest.param(1, 4, marks=pytest.mark.slow), (4, 2)],  # the latter cuts both ways
)
def test_pieces_by_length_add_up(method, num_micro, lengths):
    params = parameters(WIDE)
    rollout = long_and_short(WIDE, params)
    want = gradient(WIDE, method, 1, rollout, params)
    got = gradient(WIDE, method, num_micro, rollout, params, lengths=lengths)
    chex.assert_trees_all_close(got, want, atol=1e-6)


def test_pieces_by_length_are_computed_up_to_their_longest_row():
    params = parameters(WIDE)
    rollout = long_and_short(WIDE, params)
    seen = []

    def measure(params, prompts, samples, reference=None):
        jax.debug.callback(lambda x: seen.append(x.shape), samples.tokens)
        return WIDE.measure(params, prompts, samples)

    policy = WIDE._replace(measure=measure)
    gradient(policy, fade(), 2, rollout, params, lengths=4)
    jax.effects_barrier()
    assert len(seen) == 8 and {shape[:2] for shape in seen} == {(4, 1)}
    mask = np.asarray(rollout.samples.mask)
    length = -np.sort(-np.max(mask * np.arange(1, 17), -1), 1)
    halves = length[np.argsort(-length.sum(1), kind="stable")].reshape(2, 4, 4)
    sizes = 4 * np.ceil(halves.max(1) / 4)  # of the longest row of each piece
    assert sorted(shape[2] for shape in seen) == sorted(sizes.ravel())
    assert np.mean(sizes) <= 8  # of 16


def test_pieces_by_length_of_a_decoder_on_a_mesh():
    params = parameters(DECODER)
    rollout = long_and_short(DECODER, params)
    want = gradient(DECODER, fade(), 1, rollout, params)
    assert float(optax.tree.norm(want[0])) > 0.1
    devices = mesh.make()
    with jax.set_mesh(devices):
        sharded = mesh.shard_prompts(rollout, devices)
        copies = mesh.replicate(params, devices)
        got = gradient(DECODER, fade(), 1, sharded, copies, lengths=4)
    got, want = jax.device_get((got, want))
    chex.assert_trees_all_close(got, want, atol=2e-6, rtol=1e-5)


def test_a_group_must_divide_into_lengths():
    state, learn = learner(fade(), num_lengths=3)
    with pytest.raises(ValueError, match="multiple of num_lengths = 3, got 2"):
        learn(state, ROLLOUT)
