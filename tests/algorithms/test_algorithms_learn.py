"""Every algorithm learns: it raises the reward, and lowers it with its sign flipped.

The policy is a table of logits, so a run costs milliseconds and its expected reward is
exact. What some methods need, the fake run supplies to all: reference, teacher, values,
demonstrations, hints.
"""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from algorithm_cases import (
    BY_FAMILY,
    CASES,
    DEMONSTRATION,
    GREEDY,
    OWN,
    PARTS,
    Case,
    G,
    T,
)

from rljax import algorithms, program
from rljax.learn import update
from rljax.policy import against_reference
from rljax.types import (
    Prompts,
    Rollout,
    Samples,
    TokenStats,
    Verdict,
)

P, V = 8, 3
NUM_STEPS, SEEDS = 60, 4
CHANCE = V**-T  # the reward of the policy at the start, which is uniform
BANDIT = fakes.bandit(P, T, V)
TARGET = np.random.default_rng(0).integers(0, V, (P, T)).astype(np.int32)


def measure(params, prompts, samples, reference=None) -> TokenStats:
    """Everything that an algorithm asks for."""
    now = against_reference(BANDIT)(params, prompts, samples, reference)
    value = jnp.broadcast_to(params["value"][prompts.id, None], now.logp.shape)
    # As if layers drifted where logits are large.
    drift = jnp.mean(jnp.square(params["logits"]), -1)[prompts.id, None]
    drift = jnp.broadcast_to(drift, now.logp.shape)
    return now.replace(extra={**now.extra, "value": value, "consistency": drift})


def act(case: Case):
    """Samples, with all statistics measured on all rows."""

    def rows(params, prompts, source):
        logits = params["logits"][prompts.id, None]
        if source == DEMONSTRATION:
            return prompts.data["target"][:, None]
        if source == GREEDY:
            return jnp.argmax(logits, -1)
        return jnp.argmax(logits + prompts.data["noise"], -1)

    def run(state, prompts):
        sources = case.others if case.only else (OWN, *case.others)
        parts = [rows(state.params, prompts, s).astype(jnp.int32) for s in sources]
        counts = [part.shape[1] for part in parts]
        tokens = jnp.concatenate(parts, 1)
        samples = Samples(
            tokens=tokens,
            mask=jnp.ones(tokens.shape, bool),
            source=jnp.tile(jnp.repeat(jnp.asarray(sources), np.array(counts)), (P, 1)),
            finished=jnp.ones(tokens.shape[:2], bool),
        )
        told = 2 * jax.nn.one_hot(prompts.data["target"], V)  # what a teacher knows
        teacher = {"logits": state.params["logits"] + told}
        old = measure(state.params, prompts, samples, state.reference)
        return Rollout(
            prompts=prompts,
            samples=samples.replace(behaviour=old),
            old=old,
            reference=BANDIT.measure(state.reference, prompts, samples),
            teacher=BANDIT.measure(teacher, prompts, samples),
        )

    return run


def problems() -> Prompts:
    """[seeds, steps, P, ...]: always the same problems, with all that data may hold.

    noise: what samples are drawn by; of NumPy, as a random generator in the program
      would take longer to compile than the rest of it.
    """
    shape = (SEEDS, NUM_STEPS, P)

    def everywhere(x):
        return np.broadcast_to(x, (*shape, *np.shape(x)[1:]))

    ones = np.ones(P, np.int32)
    data = {
        "target": everywhere(TARGET),
        "answers": everywhere(TARGET[:, None]),
        "weight": everywhere(np.float32(ones)),
        "hint_length": everywhere(ones),
        "noise": np.random.default_rng(1).gumbel(size=(*shape, G, T, V)),
    }
    return Prompts(
        tokens=everywhere(ones[:, None] - 1),
        length=everywhere(ones),
        id=everywhere(np.arange(P, dtype=np.int32)),
        data=data,
    )


def verify(prompts, samples) -> Verdict:
    right = samples.tokens == prompts.data["target"][:, None]
    return Verdict.binary(jnp.all(right, -1))


def reward(params) -> jax.Array:
    """f32[]: the expected reward, enumerated."""
    logp = jax.nn.log_softmax(params["logits"])
    logp = jnp.take_along_axis(logp, TARGET[..., None], -1)
    return jnp.mean(jnp.exp(jnp.sum(logp, (1, 2))))


def rewards_after_training(case: Case, signs: tuple[float, ...]) -> np.ndarray:
    """[signs, seeds]: a population in one program; `signs` multiply the loss."""

    def train(sign, prompts):
        flipped = case.algorithm._replace(
            loss=lambda *args: sign * case.algorithm.loss(*args)
        )
        learner = update.learner(
            measure,
            flipped,
            optax.adam(0.1),
        )
        params = {**BANDIT.init(None), "value": jnp.zeros((P, T))}
        state = learner.init(params, jax.random.key(0), reference=params)
        state, _ = program.fused(act(case), learner, verify)(state, prompts)
        return reward(state.params)

    both = jax.vmap(jax.vmap(train, (None, 0)), (0, None))
    run = jax.jit(both)
    return np.asarray(run(jnp.asarray(signs, jnp.float32), problems()))


def assert_learned(rewards):
    """Every seed at least doubled the reward of the start."""
    assert np.all(rewards > 2 * CHANCE), rewards


@pytest.mark.parametrize("name", BY_FAMILY)
def test_it_raises_the_reward_and_not_with_its_sign_flipped(name):
    right, flipped = rewards_after_training(CASES[name], (1.0, -1.0))
    assert_learned(right)
    with pytest.raises(AssertionError):
        assert_learned(flipped)
    assert np.all(flipped < CHANCE)


def test_no_algorithm_is_left_out():
    # A gate is no recipe, but it is tried with them.
    assert set(CASES) | PARTS == set(algorithms.__all__)
