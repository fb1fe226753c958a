"""Laws of every algorithm: microbatches add up, and devices share the work.

Nothing of an algorithm may depend on which pieces of a batch are computed together, or
where: not its quantiles, its divisors, its ratios of whole sequences, its controllers.
"""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from algorithm_cases import CASES, OWN, Case, G

from rljax import mesh
from rljax.learn import update
from rljax.types import ReferencedMeasure, Rollout

P, T = 16, 8
# Of one length whatever the gradient's: neither so short that ratios stay at 1, nor so
# long that rounding errors grow.
STEP = optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.3))
PARAMS, REFERENCE, TEACHER = (fakes.bigram_params(seed=seed) for seed in range(3))


def rollout(case: Case) -> Rollout:
    """Samples of a sampler that is off by some; sources are those the case needs."""
    right = np.arange(G) < (np.arange(P) % (G + 1))[:, None]  # none to all of a group
    rows = fakes.rollout(P, G, T, reward=right)
    sources = case.others * G if case.only else (OWN,) * G
    sources = (*sources[: G - len(case.others)], *case.others)
    samples = rows.samples.replace(source=jnp.tile(jnp.asarray(sources), (P, 1)))
    draw = np.random.default_rng(1)
    far = 0.4 * np.arange(G)[:, None] / G  # the first rows pass the strictest tests

    def measured(params):
        return jax.jit(fakes.bigram_measure)(params, REFERENCE, rows.prompts, samples)

    def near():
        now = measured(PARAMS)
        noise = jax.tree.map(lambda x: far * draw.normal(0, 1, x.shape), now)
        return jax.tree.map(lambda x, d: x + jnp.asarray(d, x.dtype), now, noise)

    data = {
        "answers": samples.tokens[:, -1:],
        "answers_mask": samples.mask[:, -1:],
        "answers_source": samples.source[:, -1:],
        "weight": jnp.ones(P),
        "hint_length": jnp.ones(P, jnp.int32),
    }
    return Rollout(
        prompts=rows.prompts.replace(data=data),
        samples=samples.replace(behaviour=near()),
        verdict=rows.verdict,
        old=measured(PARAMS),
        reference=measured(REFERENCE),
        teacher=measured(TEACHER),
    )


def learn(case: Case, num_devices=1, **pieces):
    """FLOPs of the update, those of one device, and what it makes.

    The first are of the program before it is compiled, within 2 % of those of one that
    is compiled for one device.
    """
    learner = update.learner(
        ReferencedMeasure(fakes.bigram_measure),
        case.algorithm,
        STEP,
        gate=case.gate,
        num_passes=2,  # ratios are 1 in the first
        **pieces,
    )
    place = mesh.make(jax.devices()[:num_devices])
    with jax.set_mesh(place):
        state = learner.init(PARAMS, jax.random.key(0), reference=REFERENCE)
        state = mesh.replicate(state, place)
        rows = mesh.shard_prompts(rollout(case), place)
        lowered = jax.jit(learner.learn).lower(state, rows)
        step = lowered.compile(fakes.BARELY)
        state, metrics = step(state, rows)
    end = jax.device_get((state.params, state.algorithm, metrics))
    return lowered.cost_analysis()["flops"], step.cost_analysis()["flops"], end


@pytest.mark.by_turns(3)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pieces_and_devices_change_nothing(case):
    # Weighing each piece alone would average quantiles and divisors; a batch that lost
    # its sharding would cost every device all of it.
    _, _, pieces = learn(case, num_microbatches=4, num_lengths=2)
    whole, share, spread = learn(case, num_devices=8)
    chex.assert_trees_all_close(pieces, spread, atol=1e-5, rtol=1e-5)
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), spread[0], PARAMS)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert 0.11 < share / whole < 0.14
