"""The update: steps one after another, and refused ones that leave no trace."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import ROLLOUT, fade, learner

from rljax import advantage as adv
from rljax import loss
from rljax.advantage import Term, algorithm
from rljax.learn import update
from rljax.metric import Max


def counting():
    """A reduction that counts how often it was used."""
    mean = adv.token_mean()

    def weigh(credit, rollout, state):
        return mean.update(credit, rollout, ())[0], state + 1

    return adv.AdvantageTransform(lambda: jnp.zeros((), jnp.int32), weigh)


def spoil(field):
    stats = ROLLOUT.old
    bad = getattr(stats, field).at[3, 1, 0].set(jnp.nan)
    return ROLLOUT.replace(old=stats.replace(**{field: bad}))


@pytest.mark.parametrize(
    ("field", "num_minibatches"), [("logp", 1), ("entropy", 1), ("entropy", 2)]
)
def test_a_refused_gradient_leaves_no_trace(field, num_minibatches):
    # A NaN entropy would stay in FADE's average for ever, a NaN logp in Adam's moments.
    term = Term(
        advantage=adv.scale_by_fade(adv.fade_controller(entropy_target=5.0)),
        weighting=counting(),
        loss_fn=loss.ppo_clip(),
    )
    state, learn = learner(
        algorithm(policy=term), num_minibatches=num_minibatches, num_passes=2
    )
    state, metrics = learn(state, ROLLOUT)
    assert metrics["update/refused_in_row"].value == metrics["update/refused"] == 0
    assert int(state.algorithm.weighting[0]) == 2 * num_minibatches
    before, in_row = state, 0
    for _ in range(2):
        state, metrics = learn(state, spoil(field))
        in_row += 2 * num_minibatches
        assert metrics["update/refused"] == 1
        assert metrics["update/refused_in_row"].value == in_row
    for name in ("params", "optimizer", "algorithm"):
        chex.assert_trees_all_equal(getattr(state, name), getattr(before, name))
    assert int(state.step) == 3
    state, metrics = learn(state, ROLLOUT)
    assert metrics["update/refused_in_row"].value == 0
    chex.assert_tree_all_finite(state.params)
    assert int(state.algorithm.advantage[0].controller.step) == 2


def test_a_half_that_is_finite_is_learned_from_though_the_other_is_refused():
    state, learn = learner(
        algorithm(
            policy=Term(
                advantage=adv.scale_by_fade(),
                weighting=counting(),
                loss_fn=loss.ppo_clip(),
            )
        ),
        num_minibatches=2,
    )
    state, metrics = learn(state, spoil("logp"))
    assert metrics["update/refused"] == 0.5
    assert metrics["update/refused_in_row"].value == 1
    assert int(state.algorithm.weighting[0]) == 1
    assert int(state.algorithm.advantage[0].controller.step) == 1
    chex.assert_tree_all_finite((state.params, state.optimizer, state.algorithm))


class Seen(NamedTuple):
    ids: jax.Array  # i32[steps, minibatch] prompt ids in the order of their use
    step: jax.Array


def recording(num_steps, size):
    """A reduction that writes down which prompts it was given."""
    mean = adv.token_mean()

    def weigh(credit, rollout, state):
        ids = state.ids.at[state.step].set(rollout.prompts.id)
        return mean.update(credit, rollout, ())[0], Seen(ids, state.step + 1)

    def init():
        return Seen(jnp.full((num_steps, size), -1), jnp.zeros((), jnp.int32))

    return adv.AdvantageTransform(init, weigh)


def test_every_pass_uses_every_prompt_once_in_an_order_of_its_own():
    term = Term(
        advantage=adv.scale_by_fade(),
        weighting=recording(8, 4),
        loss_fn=loss.ppo_clip(),
    )
    state, learn = learner(algorithm(policy=term), num_passes=2, num_minibatches=2)
    state, metrics = learn(state, ROLLOUT)
    state, _ = learn(state, ROLLOUT)
    assert metrics["update/steps"] == 4
    assert int(state.optimizer[0].count) == 8
    assert int(state.algorithm.advantage[0].controller.step) == 2  # once per batch
    passes = np.asarray(state.algorithm.weighting[0].ids).reshape(4, 8)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(8), (4, 1)))
    assert len({tuple(order) for order in passes}) == 4


def test_minibatches_are_optimiser_steps_one_after_another():
    term = Term(
        advantage=adv.center_by_group(),
        weighting=recording(2, 4),
        loss_fn=loss.ppo_clip(),
    )
    method, sgd = algorithm(policy=term), optax.sgd(0.5)
    state, learn = learner(method, sgd, num_minibatches=2)
    state, metrics = learn(state, ROLLOUT)
    one, learn = learner(method, sgd)
    place = {int(i): n for n, i in enumerate(ROLLOUT.prompts.id)}
    losses = []
    for ids in np.asarray(state.algorithm.weighting[0].ids):
        rows = np.array([place[int(i)] for i in ids])
        one, row = learn(one, jax.tree.map(lambda x, rows=rows: x[rows], ROLLOUT))
        losses.append(float(row["update/loss"]))
    chex.assert_trees_all_close(state.params, one.params, atol=1e-6)
    assert float(metrics["update/loss"]) == pytest.approx(np.mean(losses), abs=1e-6)


def stop_after(num_steps):
    """A gate that ends the updates of a rollout before step `num_steps`; for tests."""

    def decide(grads, metrics, reuse, state):
        end = state >= num_steps
        return ~end, end, state + ~end, {"gap/reuse": Max(reuse)}

    return update.Gate(lambda: jnp.zeros((), jnp.int32), decide)


def test_a_gate_may_end_the_updates_of_a_rollout():
    # 6 steps were planned; the 4th is refused and the last: 3 moments, reuse 1.
    state, learn = learner(fade(), gate=stop_after(3), num_passes=3, num_minibatches=2)
    state, metrics = learn(state, ROLLOUT)
    assert metrics["update/steps"] == 4
    assert metrics["update/refused"] == 0.25
    assert metrics["gap/reuse"].value == 1
    assert int(state.optimizer[0].count) == 3


def test_prompts_must_divide_into_the_pieces():
    state, learn = learner(fade(), num_minibatches=3)
    with pytest.raises(ValueError, match=r"multiple of .* = 3, got 8 prompts"):
        learn(state, ROLLOUT)
