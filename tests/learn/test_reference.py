"""References that follow the policy."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms
from rljax.learn import reference, update

ROWS = fakes.rollout(2, 4, 2)
ROWS = ROWS.replace(samples=ROWS.samples.replace(tokens=ROWS.samples.tokens % 3))


def test_an_average_by_hand():
    # GRPO-CARE: .995 * 1 + .005 * 2. The other way round it would be 1.995.
    move = reference.averaged(decay=0.995)
    got = move(jnp.int32(1), {"w": jnp.array(1.0)}, {"w": jnp.array(2.0)})
    assert float(got["w"]) == pytest.approx(1.005, abs=1e-6)


@pytest.mark.parametrize(
    "make", [reference.renewed, lambda every: reference.averaged(decay=0, every=every)]
)
def test_between_its_turns_the_reference_stays(make):
    move = make(every=3)
    old, new = {"w": jnp.array(1.0)}, {"w": jnp.array(2.0)}
    got = [float(move(jnp.int32(step), old, new)["w"]) for step in range(1, 7)]
    assert got == [1, 1, 2, 1, 1, 2]


def test_a_learner_renews_its_reference_after_every_second_rollout():
    policy = fakes.bandit(2, 2, 3)
    learner = reference.following(
        update.learner(policy.measure, algorithms.reinforce(), optax.sgd(0.5)),
        reference.renewed(every=2),
    )
    params = policy.init(None)
    state = learner.init(params, jax.random.key(0), jax.tree.map(jnp.copy, params))
    learn = jax.jit(learner.learn)
    first, _ = learn(state, ROWS)
    assert float(jnp.max(jnp.abs(first.params["logits"]))) > 0.01
    np.testing.assert_array_equal(first.reference["logits"], 0)
    second, _ = learn(first, ROWS)
    np.testing.assert_array_equal(second.reference["logits"], second.params["logits"])


def test_what_cannot_follow_is_refused():
    narrow = {"w": jnp.array(1.0, jnp.bfloat16)}
    with pytest.raises(ValueError, match="must be float32, got bfloat16"):
        reference.averaged(decay=0.9)(jnp.int32(1), narrow, narrow)
    policy = fakes.bandit(2, 2, 3)
    inner = update.learner(policy.measure, algorithms.reinforce(), optax.sgd(0.5))
    state = inner.init(policy.init(None), jax.random.key(0))
    with pytest.raises(ValueError, match="needs a reference, got None"):
        reference.following(inner, reference.renewed(every=1)).learn(state, ROWS)
    state = state.replace(reference=state.params)
    other = reference.following(inner, lambda step, old, new: {"other": old})
    with pytest.raises(ValueError, match="must return a tree like the reference"):
        other.learn(state, ROWS)
