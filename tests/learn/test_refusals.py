"""Refusals: whatever would make something not finite of a run leaves no trace."""

import functools

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss
from rljax.learn import gate, update

POLICY = fakes.bandit(4, 3, 8)
ROWS = fakes.rollout(4, 4, 3)
ROWS = ROWS.replace(samples=ROWS.samples.replace(tokens=ROWS.samples.tokens % 8))
METHOD = adv.algorithm(
    policy=adv.Term(
        advantage=adv.scale_by_fade(),
        weighting=adv.token_mean(),
        loss_fn=loss.ppo_clip(),
    )
)


ADAM = optax.adam(0.1)


def learner(method=METHOD, optimizer=ADAM, **options):
    made, learn = made_once(method, optimizer, **options)
    return made.init(POLICY.init(None), jax.random.key(1)), learn


@functools.cache
def made_once(method, optimizer, **options):
    made = update.learner(POLICY.measure, method, optimizer, **options)
    return made, jax.jit(made.learn)


def on_policy(rows=ROWS):
    params = POLICY.init(None)
    return rows.replace(old=POLICY.measure(params, rows.prompts, rows.samples))


def learned(state):
    return state.params, state.optimizer, state.algorithm


@functools.cache
def huge(scale):
    """A loss whose gradient is finite and `scale` times too large."""
    return adv.algorithm(
        policy=adv.Term(
            weighting=adv.chain(adv.token_mean(), adv.scale_weight(scale)),
            loss_fn=loss.reinforce(),
        )
    )


BAD = {
    "rate of NaN": (METHOD, optax.adamw(float("nan"))),
    "rate of inf": (METHOD, optax.adamw(float("inf"))),
    "schedule that gives NaN": (METHOD, optax.sgd(lambda count: jnp.log(-1.0 - count))),
    "decay of NaN": (METHOD, optax.adamw(0.1, weight_decay=float("nan"))),
    "clipping that gives NaN": (METHOD, optax.clip_by_global_norm(float("nan"))),
    "step beyond float32": (huge(1e4), optax.sgd(1e38)),
    "second moment beyond float32": (huge(1e25), optax.adam(0.1)),
}


@pytest.mark.parametrize(("method", "optimizer"), BAD.values(), ids=BAD)
@pytest.mark.parametrize(
    "num_passes",
    [pytest.param(1, marks=pytest.mark.slow), 2],
)
def test_a_step_with_an_outcome_that_is_not_finite_leaves_no_trace(
    method, optimizer, num_passes
):
    # The gradient is finite in all of them: a gate that looks at it alone lets them by.
    state, learn = learner(method, optimizer, num_passes=num_passes)
    for count in (1, 2):
        after, metrics = learn(state, on_policy())
        assert np.isfinite(metrics["update/loss"])
        assert metrics["update/refused"] == 1
        assert metrics["update/refused_in_row"].value == count * num_passes
        assert metrics["update/moved_share"] == 0
        chex.assert_trees_all_equal(learned(after), learned(state))
        assert int(after.step) == count
        state = after


def test_a_gate_of_ones_own_lets_nothing_through_that_is_not_finite():
    # Whoever passed target_kl alone once switched the check off.
    state, learn = learner(gate=gate.target_kl(10.0))
    rows = on_policy()
    logp = rows.old.logp.at[0, 0, 0].set(jnp.nan)
    after, metrics = learn(state, rows.replace(old=rows.old.replace(logp=logp)))
    assert metrics["update/refused"] == metrics["update/refused_in_row"].value == 1
    chex.assert_trees_all_equal(learned(after), learned(state))


def test_states_that_begin_infinite_are_no_reason_to_refuse():
    # The best loss so far begins at infinity.
    inner = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau())
    optimizer = optax.GradientTransformation(
        inner.init, lambda g, s, p: inner.update(g, s, p, value=1.0)
    )
    state, learn = learner(optimizer=optimizer)
    assert any(np.any(np.isinf(x)) for x in jax.tree.leaves(state.optimizer))
    _, metrics = learn(state, on_policy())
    assert metrics["update/refused"] == 0
    assert metrics["update/moved_share"] > 0


def remembering(value_fn):
    """A transform that changes nothing and remembers a number of its rollout."""

    def apply(credit, rollout, state):
        del state
        return credit, value_fn(rollout)

    return adv.AdvantageTransform(lambda: jnp.zeros(()), apply)


@pytest.mark.parametrize("place", ["advantage", "weighting"])
def test_a_memory_that_would_not_be_finite_is_not_kept(place):
    # Its NaN would decide over the next batch, and over every one after it.
    note = remembering(lambda rollout: jnp.sum(rollout.old.entropy))
    chains = {"advantage": [adv.center_by_group()], "weighting": [adv.token_mean()]}
    chains[place].append(note)
    chains = {name: adv.chain(*parts) for name, parts in chains.items()}
    method = adv.algorithm(policy=adv.Term(loss_fn=loss.ppo_clip(), **chains))
    state, learn = learner(method)
    rows = on_policy()
    entropy = rows.old.entropy.at[0, 0, 0].set(jnp.nan)
    after, metrics = learn(state, rows.replace(old=rows.old.replace(entropy=entropy)))
    assert metrics["update/refused_in_row"].value == 1
    chex.assert_trees_all_equal(learned(after), learned(state))
    after, metrics = learn(after, rows)
    assert metrics["update/refused"] == 0


def test_a_gate_forgets_steps_that_were_not_finite():
    # Its window would take in the energy of a step that was never made.
    counting = gate.Gate(
        lambda: jnp.zeros((), jnp.int32),
        lambda grads, metrics, reuse, state: (
            jnp.ones((), bool),
            jnp.zeros((), bool),
            state + 1,
            {},
        ),
    )
    state, learn = learner(optimizer=optax.sgd(lambda n: jnp.nan), gate=counting)
    after, _ = learn(state, on_policy())
    assert int(after.gate.gate) == 0 and int(after.gate.refused_in_row) == 1


def test_what_is_only_reported_decides_nothing():
    # The loss is infinite at one token and its gradient is not: a value that a clip
    # holds back, or a far token's ratio, once lost the whole batch.
    def loss_fn(now, credit, rollout):
        first = jnp.arange(now.logp.shape[-1]) == 0
        return -credit.advantage * now.logp + jnp.where(first, jnp.inf, 0.0)

    method = adv.algorithm(
        policy=adv.Term(
            advantage=adv.center_by_group(), weighting=adv.token_mean(), loss_fn=loss_fn
        )
    )
    state, learn = learner(method)
    after, metrics = learn(state, on_policy())
    assert not np.isfinite(metrics["update/loss"])
    assert metrics["update/refused"] == metrics["update/refused_in_row"].value == 0
    assert np.any(after.params["logits"] != 0)
    chex.assert_tree_all_finite(after.params)


@pytest.mark.parametrize("far", [100.0, -100.0, 1e4])
def test_the_reported_kl_is_finite_whatever_the_ratio(far):
    rows = on_policy()
    logp = rows.old.logp.at[0, 0, 0].add(-far)
    state, learn = learner(huge(1.0))
    _, metrics = learn(state, rows.replace(old=rows.old.replace(logp=logp)))
    assert np.isfinite(metrics["policy/kl_old_nats"])
    assert metrics["update/refused"] == 0
    chex.assert_tree_all_finite(metrics)


def test_the_share_of_parameters_moved():
    # Only the logits of prompts whose groups are mixed have a gradient.
    reward = np.array([[1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    rows = fakes.rollout(4, 4, 3, reward=reward, length=np.full((4, 4), 3))
    rows = rows.replace(samples=rows.samples.replace(tokens=rows.samples.tokens % 8))
    method = adv.algorithm(
        policy=adv.Term(
            advantage=adv.center_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.reinforce(),
        )
    )
    state, learn = learner(method, optax.sgd(1.0))
    after, metrics = learn(state, on_policy(rows))
    want = np.mean(np.asarray(after.params["logits"] != state.params["logits"]))
    assert 0.2 < want <= 0.5
    assert float(metrics["update/moved_share"]) == pytest.approx(want)
    state, learn = learner(method, optax.sgd(0.0))
    assert learn(state, on_policy(rows))[1]["update/moved_share"] == 0
