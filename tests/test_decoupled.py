"""The decoupled loop: a step-by-step simulation's numbers, and nothing waits in it."""

import functools
import threading

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

from rljax import algorithms, decoupled, mesh, metric, program
from rljax.decoupled import Ahead
from rljax.learn import update
from rljax.learn.update import Learner
from rljax.model import DecoderConfig, decoder_policy
from rljax.rollout.sample import sampler
from rljax.types import Rollout, TrainState, Verdict

STEPS, P = 5, 12
POLICY = decoder_policy(
    DecoderConfig(
        **{"vocab_size": 16, "num_layers": 1, "d_model": 16, "num_heads": 2},
        **{"num_kv_heads": 2, "head_dim": 8, "d_ff": 32},
    )
)
METHODS = {"minpro": algorithms.minpro(), "tis": algorithms.tis()}


def verify(prompts, samples):
    """Right are completions whose tokens add up to a multiple of 3."""
    xp = np if isinstance(samples.tokens, np.ndarray) else jnp
    total = (samples.tokens * samples.mask).sum(-1) + prompts.id[:, None]
    correct = total % 3 == 0
    reward = correct.astype("float32")
    return Verdict(reward=reward, correct=correct, failed=xp.zeros_like(correct))


@functools.cache
def parts(method):
    """act, learner, and what measures `old` anew; two optimiser steps per rollout."""
    sample = sampler(POLICY, num_samples=4, max_tokens=6, stop_tokens=(1,), top_k=12)
    learner = update.learner(
        POLICY.measure, METHODS[method], optax.sgd(0.5, momentum=0.9), num_minibatches=2
    )
    measure_old = POLICY.measure if method == "tis" else None
    return program.actor(POLICY, sample), learner, measure_old


def begin(method, staleness=None, in_graph=True):
    act, learner, _ = parts(method)
    judge = verify if in_graph else None

    def state():
        made = learner.init(POLICY.init(jax.random.key(0)), jax.random.key(1))
        if staleness is None:
            return made
        early = decoupled.waiting(act, judge, made, fakes.prompts(P), staleness)
        return made.replace(ahead=early)

    return state


def batch(step):
    return jax.tree.map(np.asarray, fakes.prompts(P, seed=step))


@functools.cache
def simulated(method, staleness):
    """Metrics of each step, and the last parameters, on one device, one by one.

    Samples of step t are drawn with the state of so many updates ago, but with the
    randomness of their own step.
    """
    act, learner, measure_old = parts(method)
    act, learn = jax.jit(act), jax.jit(learner.learn)
    states, found = [jax.jit(begin(method))()], []
    for t in range(STEPS):
        behind = states[max(t - staleness, 0)]
        rollout = act(behind.replace(step=jnp.int32(t)), batch(t))
        verdict = verify(rollout.prompts, rollout.samples)
        rollout = rollout.replace(verdict=verdict)
        if measure_old is not None:
            own = jax.jit(measure_old)
            old = own(states[t].params, rollout.prompts, rollout.samples)
            rollout = rollout.replace(old=old)
        state, metrics = learn(states[t], rollout)
        states.append(state)
        metrics |= {"samples/staleness": jnp.float32(min(t, staleness))}
        metrics |= program.rollout_metrics(rollout)
        found.append(jax.device_get(metric.numbers(metrics)))
    return found, jax.device_get(states[-1].params)


def run(method, ahead, place=None, in_graph=True):
    """The same of the decoupled loop, its learner on a mesh."""
    act, learner, measure_old = parts(method)
    ahead = ahead._replace(measure_old=measure_old)
    stream = decoupled.Early(Batches(), ahead.staleness)
    found = []
    with mesh.using(place):
        state = begin(method, ahead.staleness, in_graph)
        where = mesh.state_shardings(jax.eval_shape(state), place) if place else None
        state = jax.jit(state, out_shardings=where)()
        loop = decoupled.loop(act, learner, verify, ahead, in_graph=in_graph)
        for _ in range(STEPS):
            state, metrics = loop(state, next(stream))
            metrics = jax.device_get(metric.numbers(metrics))
            found.append(jax.tree.map(lambda x: x[0], metrics))
    return found, jax.device_get(state.params)


class Batches:
    def __init__(self):
        self.count = 0

    def __next__(self):
        self.count += 1
        return jax.tree.map(lambda x: x[None], batch(self.count - 1))

    def get_state(self):
        return self.count

    def set_state(self, state):
        self.count = state


def sub_meshes():
    devices = jax.devices()
    return mesh.make(devices[:2], data=2), mesh.make(devices[2:], fsdp=6)


def assert_same(found, want):
    """Bars above rounding in another order; the first step moves parameters by 1e-2."""
    chex.assert_trees_all_close(found[1], want[1], atol=1e-6, rtol=0)
    chex.assert_trees_all_close(found[0], want[0], atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_on_meshes_of_their_own_both_halves_give_the_numbers_of_a_simulation(
    method, staleness
):
    # Samples of the newest policy, or keys of another step, are other tokens. Weights
    # that arrive an update late would be those of one more step of staleness.
    own, place = sub_meshes()
    found = run(method, Ahead(staleness, mesh=own), place)
    assert_same(found, simulated(method, staleness))
    reported = [float(m["samples/staleness"]) for m in found[0]]
    assert reported == [min(t, staleness) for t in range(STEPS)]


@pytest.mark.slow
def test_on_one_device_it_gives_the_numbers_of_a_simulation_too():
    assert_same(run("minpro", Ahead(1)), simulated("minpro", 1))
    # The policy's own age changes the numbers; else the test above would see nothing.
    stale, fresh = simulated("minpro", 1)[1], simulated("minpro", 0)[1]
    apart = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), stale, fresh)
    assert max(jax.tree.leaves(apart)) > 1e-3


@pytest.mark.slow
def test_a_verifier_in_python_gives_the_same_numbers():
    own, place = sub_meshes()
    found = run("minpro", Ahead(1, mesh=own), place, in_graph=False)
    assert_same(found, simulated("minpro", 1))


@pytest.mark.slow
def test_without_staleness_it_is_the_coupled_loop():
    act, learner, _ = parts("minpro")
    coupled = program.fused(act, learner, verify)
    state = jax.jit(begin("minpro"))()
    for t in range(STEPS):
        state, _ = coupled(state, jax.tree.map(lambda x: x[None], batch(t)))
    found = run("minpro", Ahead(0))[1]
    chex.assert_trees_all_close(found, jax.device_get(state.params), atol=1e-6, rtol=0)


def test_an_update_ends_only_after_the_next_samples_if_it_is_told_to_wait_for_them():
    # Each update waits for the samples of the next step, which wait for nothing of it.
    # A loop that samples after it learned, or that waits anywhere, never gets on: the
    # update gives up, and says so.
    drawn = [threading.Event() for _ in range(STEPS + 2)]

    def act(state, prompts):
        io_callback(lambda step: drawn[int(step)].set(), None, state.step)
        return Rollout(prompts=prompts, samples=fakes.rollout(P).samples)

    def learn(state, rollout):
        waited = jax.ShapeDtypeStruct((), bool)
        sampled = io_callback(lambda t: drawn[int(t) + 1].wait(60), waited, state.step)
        return state.replace(step=state.step + 1), {"sampled": sampled}

    def zero(params, key):
        rest = dict.fromkeys(("optimizer", "algorithm", "gate"), ())
        return TrainState(params=params, key=key, step=jnp.int32(0), **rest)

    own = mesh.make(jax.devices()[:1])
    place = mesh.make(jax.devices()[1:2])
    stream = decoupled.Early(Batches(), 1)
    with mesh.using(place):
        state = mesh.place(zero(jnp.zeros(3), jax.random.key(0)), place)
        early = decoupled.waiting(act, None, state, batch(0), 1)
        state = state.replace(ahead=mesh.replicate(early, place))
        loop = decoupled.loop(
            act, Learner(zero, learn), None, Ahead(1, mesh=own), in_graph=True
        )
        found = []
        for _ in range(STEPS):
            state, metrics = loop(state, next(stream))
            found.append(metrics["sampled"])
    assert all(bool(sampled[0]) for sampled in found)
