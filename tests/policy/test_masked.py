"""Masters' teacher: what is masked, when, and that the actor's teacher is it."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.policy import masked_teacher
from rljax.policy.masked import masked, staircase
from rljax.types import TrainState


def kernel(*rows):
    return {"layers": {"q": {"kernel": jnp.array(rows, jnp.float32)}}}


def test_the_smallest_weights_are_masked_by_hand():
    # |w| sorted: .03 .1 .2 .5 .8; the .2 quantile lies at .8 of the way to .1: .086.
    # The k-th smallest with >= would keep .03.
    got = masked(kernel([[0.1, -0.5, 0.03, 0.8, -0.2]]), 0.2)
    want = [[[0.1, -0.5, 0, 0.8, -0.2]]]
    np.testing.assert_allclose(got["layers"]["q"]["kernel"], want)


def test_each_layer_has_a_threshold_of_its_own():
    # One for both would empty the first.
    got = masked(kernel([[0.01, 0.02]], [[1.0, -2.0]]), 0.5)
    want = [[[0, 0.02]], [[0, -2]]]
    np.testing.assert_allclose(got["layers"]["q"]["kernel"], want)


def test_a_share_of_0_masks_nothing_and_vectors_stay():
    params = kernel([[0.1, -0.5]]) | {"norm": {"scale": jnp.array([0.0, 1.0, 2.0])}}
    jax.tree.map(np.testing.assert_array_equal, masked(params, 0.0), params)
    np.testing.assert_array_equal(masked(params, 0.9)["norm"]["scale"], [0, 1, 2])


def test_the_staircase_by_hand():
    # In float32, 6 * 5 / 10 may be 2.9999998, and its floor 2.
    share = staircase(10)
    got = [float(share(jnp.int32(i))) for i in range(12)]
    want = [0.2, 0.2, 0.15, 0.15, 0.1, 0.1, 0.05, 0.05, 0, 0, 0, 0]
    np.testing.assert_allclose(got, want, atol=1e-7)


def test_stairs_that_do_not_end_at_0_are_refused():
    with pytest.raises(ValueError, match="must divide first"):
        staircase(10, first=0.2, stair=0.07)


def test_the_teacher_is_the_reference_masked_by_the_step():
    # Of the logits (3, 2, 1), half masked are (3, 2, 0): the median is 2.
    bandit = fakes.bandit(1, 1, 3)

    def measure(params, *args):
        return bandit.measure({"logits": params["kernel"]}, *args)

    policy = bandit._replace(measure=measure)
    rows = fakes.rollout(1, 1, 1, length=[[1]])
    prompts = rows.prompts.replace(id=jnp.zeros(1, jnp.int32))
    samples = rows.samples.replace(tokens=jnp.zeros((1, 1, 1), jnp.int32))
    state = TrainState(
        params={"kernel": jnp.zeros((1, 1, 3))},
        optimizer=(),
        algorithm=(),
        gate=(),
        key=jax.random.key(0),
        step=jnp.int32(0),
        reference={"kernel": jnp.array([[[3.0, 2, 1]]])},
    )
    teacher = masked_teacher(policy, staircase(10, first=0.5, stair=0.5))
    early = teacher(state, prompts, samples)
    want = 3 - np.log(np.exp(3) + np.exp(2) + 1)
    assert float(early.logp[0, 0, 0]) == pytest.approx(want, abs=1e-5)
    late = teacher(state.replace(step=jnp.int32(7)), prompts, samples)
    want = 3 - np.log(np.exp(3) + np.exp(2) + np.exp(1))
    assert float(late.logp[0, 0, 0]) == pytest.approx(want, abs=1e-5)
    with pytest.raises(ValueError, match="needs parameters"):
        teacher(state.replace(reference=None), prompts, samples)
