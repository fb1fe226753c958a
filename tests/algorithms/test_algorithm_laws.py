"""Laws of every algorithm: microbatches add up, and devices share the work.

Nothing of an algorithm may depend on which pieces of a batch are computed together, or
where: not its quantiles, its divisors, its ratios of whole sequences, its controllers.
"""

import chex
import fakes
import jax
import numpy as np
import optax
import pytest
from algorithm_cases import BY_FAMILY, CASES, Case
from bigram_rollout import PARAMS, REFERENCE, rollout

from rljax import mesh
from rljax.learn import update

# A step has the same length whatever the gradient's. Shorter ones would leave ratios at
# 1; longer ones would let rounding errors grow.
STEP = optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.3))


def lowered(case: Case, num_devices=1, **pieces):
    """The update as a program, and what it is called with."""
    learner = update.learner(
        fakes.bigram_measure,
        case.algorithm,
        STEP,
        num_passes=2,  # ratios are 1 in the first
        **pieces,
    )
    place = mesh.make(jax.devices()[:num_devices])
    with jax.set_mesh(place):
        state = learner.init(PARAMS, jax.random.key(0), reference=REFERENCE)
        state = mesh.replicate(state, place)
        rows = mesh.shard_prompts(rollout(case), place)
        return jax.jit(learner.learn).lower(state, rows), state, rows


def learn(case: Case, num_devices=1, **pieces):
    """(FLOPs of the update on each device, what it makes)."""
    program, state, rows = lowered(case, num_devices, **pieces)
    step = program.compile()
    state, metrics = step(state, rows)
    end = jax.device_get((state.params, state.algorithm, metrics))
    return step.cost_analysis()["flops"], end


def flops_of_one_device(case: Case) -> float:
    """Of the program before it is compiled: within 2 % of the compiled one's.

    Not of the program of 8: what is written for each device alone counts once there.
    """
    return lowered(case)[0].cost_analysis()["flops"]


@pytest.mark.parametrize("name", BY_FAMILY)
def test_pieces_and_devices_change_nothing(name):
    # Weighing each piece alone would average quantiles and divisors. A batch that lost
    # its sharding would cost each device all of the work.
    case = CASES[name]
    _, pieces = learn(case, num_microbatches=4, num_lengths=2)
    share, spread = learn(case, num_devices=8)
    # A parameter that rounding alone moves, or not, counts whole.
    shares = [made[2].pop("update/moved_share") for made in (pieces, spread)]
    chex.assert_trees_all_close(*shares, atol=1e-3)
    chex.assert_trees_all_close(pieces, spread, atol=1e-5, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), spread[0], PARAMS)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert 0.11 < share / flops_of_one_device(case) < 0.14
