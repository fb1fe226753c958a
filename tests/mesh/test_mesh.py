"""One device and eight do the same work, and eight share it.

Shardings never change a number, so only counting operations shows a device that
computes what its neighbours compute, too. Loop bodies are counted once, in both
programs. Programs are compiled unoptimised: that is faster and moves no operation.
"""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss, mesh, numerics, program
from rljax.advantage import Term, algorithm, chain, stateless
from rljax.learn import update
from rljax.rollout.sample import sampler
from rljax.types import Verdict

P, STEPS = 32, 5
POLICY = fakes.decoder(num_layers=2, unroll=1)  # its layers are a scan
# So many tokens that work on the parameters, which every device does, is little.
ACT = program.actor(
    POLICY, sampler(POLICY, num_samples=4, max_tokens=16, stop_tokens=(0,))
)


def verify(prompts, samples):
    return Verdict.binary(samples.tokens[..., 0] % 3 == prompts.id[:, None] % 3)


def weigh_by_entropy(credit, rollout):
    """A weighting that compares tokens of all prompts under the current policy.

    Smooth: at a threshold, rounding alone would decide over a token.
    """
    entropy, mask = rollout.current.entropy, rollout.samples.mask
    share = entropy / numerics.masked_mean(entropy, mask)
    return credit.replace(weight=credit.weight * share)


def prompts(step):
    batch = fakes.prompts(P, seed=step)
    return jax.tree.map(lambda x: np.asarray(x)[None], batch)


def train(devices, weighting, options, spread=True):
    """FLOPs per device of one step, and parameters and metrics after some steps.

    spread: whether prompts are put on the mesh, or come as NumPy arrays.
    """
    method = algorithm(
        policy=Term(
            advantage=adv.scale_by_fade(), weighting=weighting, loss_fn=loss.ppo_clip()
        )
    )
    learner = update.learner(POLICY.measure, method, optax.sgd(0.1), **options)
    run = program.fused(ACT, learner, verify)
    place = mesh.make(devices)
    with jax.set_mesh(place):
        params = jax.jit(POLICY.init)(jax.random.key(0))
        state = mesh.replicate(learner.init(params, jax.random.key(1)), place)
        batches = [prompts(k) for k in range(STEPS)]
        if spread:
            batches = [mesh.shard_prompts(batch, place, axis=1) for batch in batches]
        step = run.lower(state, batches[0]).compile()
        for batch in batches:  # refuses a state whose sharding has changed
            state, metrics = step(state, batch)
    return step.cost_analysis()["flops"], jax.device_get((state.params, metrics))


def assert_same(got, want):
    """Parameters and metrics.

    Apart: the gap, a maximum of rounding errors, and the share of parameters that
    moved, where rounding decides over single ones.
    """
    for _, metrics in (got, want):
        assert np.max(metrics.pop("gap/sampler_learner_max").value) < 1e-4
    shares = [metrics.pop("update/moved_share") for _, metrics in (got, want)]
    chex.assert_trees_all_close(*shares, atol=1e-3)
    chex.assert_trees_all_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("weighting", "options"),
    [
        pytest.param(adv.token_mean(), {}, id="whole"),
        pytest.param(
            chain(stateless(weigh_by_entropy), adv.token_mean()),
            {"num_passes": 2, "num_minibatches": 2, "num_microbatches": 2},
            id="pieces",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            adv.token_mean(),
            {"num_lengths": 2},
            id="lengths",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_eight_devices_share_the_work_and_agree_with_one(weighting, options):
    # A minibatch that lost its sharding costs every device all of it: a share of 1;
    # contiguous microbatches leave all but one or two devices idle.
    alone, want = train(jax.devices()[:1], weighting, options)
    shared, got = train(jax.devices(), weighting, options)
    assert jax.device_count() == 8
    assert 0.115 < shared / alone < 0.14
    assert_same(got, want)
    start = jax.jit(POLICY.init)(jax.random.key(0))
    moved = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), got[0], start)
    assert max(jax.tree.leaves(moved)) > 0.005


@pytest.mark.slow
def test_prompts_from_the_host_are_spread_before_anything_reads_them():
    # NumPy arrays go to every device whole: sampled there as they are, each device
    # would do all of the sampling.
    alone, want = train(jax.devices()[:1], adv.token_mean(), {}, spread=False)
    shared, got = train(jax.devices(), adv.token_mean(), {}, spread=False)
    assert 0.115 < shared / alone < 0.14
    assert_same(got, want)


def test_without_a_mesh_the_hints_do_nothing():
    tree = {"x": jnp.ones((3, 2))}
    assert mesh.constrain(tree) is tree
    with jax.set_mesh(mesh.make(jax.devices()[:1])):
        assert mesh.constrain(tree) is tree
