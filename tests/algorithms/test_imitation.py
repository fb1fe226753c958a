"""Supervised recipes by hand: losses, what they read, what they refuse; they learn."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mixed import (
    Row,
    demonstration,
    group,
    learned,
    per_token,
    solving,
    step,
    task,
)

from rljax import algorithms, program
from rljax.data import relabel
from rljax.data.problem import Problem
from rljax.learn import update
from rljax.loss import kl_k3, ppo_clip, supervised
from rljax.policy import divergence
from rljax.rollout import mixed
from rljax.types import NotMeasured, Prompts


@pytest.mark.parametrize("recipe", [algorithms.sft, algorithms.dft, algorithms.psft])
def test_imitation_does_not_read_the_verdict(recipe):
    # With the reward as advantage a demonstration that a verifier rejects, reward 0,
    # would not be learned; with -1 it would be pushed down.
    want = step(recipe(), *group([demonstration()]))[:2]
    got = step(recipe(), *group([demonstration(reward=-1.0)]))[:2]
    np.testing.assert_allclose(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1])


BASE, POLICY = np.float32([0.5, 0.3, 0.2]), np.float32([0.7, 0.2, 0.1])


def asft_loss(recipe, logits, base=BASE, label=1):
    """The loss of one token from the policy's logits f32[3]."""
    now, rollout = group([demonstration((0.5,), reference=(float(base[label]),))])
    logp = jax.nn.log_softmax(logits)
    extra = divergence.divergences(logits, jnp.log(base))
    now = now.replace(
        logp=logp[label][None, None, None],
        extra={k: v[None, None, None] for k, v in extra.items()},
    )
    credits, state, _ = recipe.credit(rollout, recipe.init())
    credits, _, _ = recipe.weigh(credits, rollout, state)
    return recipe.loss(now, credits, rollout)


def test_asft_by_hand():
    # DFT part 0.3218876, forward KL 0.0920329 (the reverse is 0.0851228).
    logits = jnp.log(POLICY)
    for anchor, want in ((0.0, 0.3218876), (0.05, 0.3264892), (0.1, 0.3310909)):
        np.testing.assert_allclose(
            asft_loss(algorithms.asft(anchor), logits), want, atol=2e-7
        )
    # p (pi - e) + lambda (pi - base); the reverse KL would have another gradient.
    grads = jax.grad(lambda x: asft_loss(algorithms.asft(0.05), x))(logits)
    np.testing.assert_allclose(grads, [0.15, -0.165, 0.015], atol=1e-7)
    collapsed = jnp.log(jnp.float32([0.98, 0.01, 0.01]))
    found = divergence.divergences(collapsed, jnp.log(BASE))
    np.testing.assert_allclose(found["kl_forward"], 1.2830334, atol=1e-6)
    np.testing.assert_allclose(found["kl_reverse"], 0.5955163, atol=1e-6)


@pytest.mark.parametrize(
    ("base", "p", "want"), [(0.5, 0.1, 2.3905621), (0.1, 0.5, 0.8094379)]
)
def test_the_sampled_anchor_by_hand(base, p, want):
    now, rollout = group([demonstration((p,), reference=(base,))])
    np.testing.assert_allclose(per_token(kl_k3(), now, rollout)[0, 0], want, rtol=1e-6)
    dft = -p * np.log(p)
    loss = step(algorithms.asft_sampled(0.1), now, rollout)[0]
    np.testing.assert_allclose(loss, dft + 0.1 * want, rtol=1e-6)


def test_psft_by_hand():
    # The clip takes the loss at 1.28 and its gradient; ratios on the other
    # side are never clipped, as A = 1.
    old, ratios = 0.5, (0.5, 1.0, 1.2, 1.4)
    row = demonstration(tuple(old * r for r in ratios), reward=0.0, old=(old,) * 4)
    now, rollout = group([row])
    loss_fn = ppo_clip(0.2, 0.28)
    np.testing.assert_allclose(
        per_token(loss_fn, now, rollout)[0, 0], [-0.5, -1, -1.2, -1.28], rtol=1e-6
    )
    loss, coefficient, _, _ = step(algorithms.psft(), now, rollout)
    np.testing.assert_allclose(loss, -3.98 / 4, rtol=1e-6)
    np.testing.assert_allclose(
        coefficient[0, 0], np.array([0.5, 1, 1.2, 0]) / 4, rtol=1e-6
    )


def test_iw_sft_by_hand():
    # Mean log-ratio 0.2310491, weight 1.2599210; the weight does not enter
    # the divisor: with it the mean would stay at the unweighted 0.6108605.
    now, rollout = group([demonstration((0.5, 0.4, 0.8), reference=(0.4, 0.4, 0.5))])
    weight = supervised.sequence_importance()(now, None, rollout)
    np.testing.assert_allclose(weight[0, 0, 0], 1.2599210, atol=1e-6)
    np.testing.assert_allclose(jnp.log(weight)[0, 0, 0], 0.2310491, atol=1e-6)
    np.testing.assert_allclose(
        step(algorithms.iw_sft(), now, rollout)[0], 0.7696360, atol=1e-6
    )
    np.testing.assert_allclose(
        step(algorithms.sft(), now, rollout)[0], 0.6108605, atol=1e-6
    )


def test_gcsl_by_hand():
    # Grades 2 and 5 under goals 1..5 are 2 + 5 pairs; likelihoods -1 and -2.
    goals = (1, 2, 3, 4, 5)
    for weight_fn, want in ((relabel.per_pair, 12 / 7), (relabel.per_sample, 1.5)):
        pairs = relabel.beyond((2, 5), goals, weight_fn)
        assert pairs.sample.tolist() == [0, 0, 1, 1, 1, 1, 1]
        assert pairs.goal.tolist() == [0, 1, 0, 1, 2, 3, 4]
        nats = np.array([1.0, 2.0])[pairs.sample]
        # Lengths differ: a token mean over all rows would weigh b's tokens twice.
        rows = [[demonstration((np.exp(-x),) * int(x * 2))] for x in nats]
        now, rollout = group(*rows, data={"weight": jnp.asarray(pairs.weight)})
        np.testing.assert_allclose(
            step(algorithms.gcsl(), now, rollout)[0], want, rtol=1e-6
        )


def test_classic_goals_are_the_highest_reached():
    pairs = relabel.achieved((2.5, 0.5, 5.0, 3.0), (1, 3, 5))
    assert pairs.sample.tolist() == [0, 2, 3]
    assert pairs.goal.tolist() == [0, 2, 1]


def test_goals_are_stated_in_the_question_and_weights_follow_the_encoding():
    pairs = relabel.beyond((1, 2), (1, 2), relabel.per_sample)
    samples = [Problem("a?", "1", "one"), Problem("b?", "2", "two")]
    made = relabel.problems(pairs, samples, lambda q, g: f"[at least {g}] {q}")
    assert [p.question for p in made] == [
        "[at least 0] a?",
        "[at least 0] b?",
        "[at least 1] b?",
    ]
    assert [p.demonstration for p in made] == ["one", "two", "two"]
    # The encoder dropped the first pair: by row number the weights would be 1, 1/2.
    prompts = Prompts(tokens=np.zeros((2, 1)), length=np.ones(2), id=np.array([1, 2]))
    prompts = relabel.with_weights(prompts, pairs)
    np.testing.assert_allclose(prompts.data["weight"], [0.5, 0.5])


@pytest.mark.parametrize(
    ("feedback", "goals", "message"),
    [((1,), (2, 1), "goals must increase"), ((0,), (1,), "lower the goals")],
)
def test_goals_that_cannot_work_are_refused(feedback, goals, message):
    with pytest.raises(ValueError, match=message):
        relabel.beyond(feedback, goals)
    with pytest.raises(ValueError, match="finite"):
        relabel.beyond((np.nan,), (1,))


# Bad input.


@pytest.mark.parametrize(
    "recipe",
    [
        algorithms.sft,
        algorithms.dft,
        algorithms.asft,
        algorithms.psft,
        algorithms.iw_sft,
        algorithms.gcsl,
        algorithms.lfu,
        algorithms.chord,
        algorithms.gac,
        lambda: algorithms.luffy(max_tokens=4),
        lambda: algorithms.srft(max_tokens=4),
        lambda: algorithms.hpt(max_tokens=4),
    ],
)
def test_recipes_that_imitate_say_so_where_nothing_is_stored(recipe):
    # The term would be empty, and the run an expensive way to train nothing.
    now, rollout = group([Row((0.5,)), Row((0.4,), reward=0.0)])
    rollout = rollout.replace(prompts=rollout.prompts.replace(data={}))
    with pytest.raises(ValueError, match=r'prompts\.data\["answers"\]'):
        step(recipe(), now, rollout)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (algorithms.psft, "old"),
        (algorithms.iw_sft, "reference"),
        (algorithms.asft_sampled, "reference"),
        (algorithms.asft, "kl_forward"),
        (algorithms.lfu, "consistency"),
    ],
)
def test_what_was_not_measured_is_named(recipe, name):
    bandit = fakes.bandit(8, 3, 6)
    learner = update.learner(bandit.measure, recipe(), optax.sgd(0.1))
    state = learner.init(bandit.init(None), jax.random.key(0))
    run = program.fused(program.actor(bandit, mixed.stored_answers()), learner)
    with pytest.raises(NotMeasured, match=name):
        run(state, task(1))


def test_a_gcsl_run_needs_weights():
    now, rollout = group([demonstration()])
    with pytest.raises(ValueError, match="with_weights"):
        step(algorithms.gcsl(), now, rollout)


# Learning.


@pytest.mark.parametrize("recipe", [algorithms.sft, algorithms.dft], ids=["sft", "dft"])
def test_imitation_learns_what_it_is_shown(recipe):
    # From 1 / 216 at the start; chance would stay there.
    bandit = fakes.bandit(8, 3, 6)
    solved, _ = learned(bandit, recipe(), mixed.stored_answers(), task(80, ("right",)))
    assert float(jnp.min(solved)) > 0.9


def test_the_anchor_holds_the_policy_back():
    # A stronger anchor leaves less probability on the demonstrations: with the sign of
    # the KL wrong it would leave more.
    bandit = fakes.bandit(8, 3, 6)
    measure = divergence.against_reference(bandit)
    solved = []
    for anchor in (0.0, 0.3):
        learner = update.learner(measure, algorithms.asft(anchor), optax.adam(0.1))
        params, reference = bandit.init(None), bandit.init(None)
        state = learner.init(params, jax.random.key(1), reference)
        run = program.fused(program.actor(bandit, mixed.stored_answers()), learner)
        state, _ = run(state, task(60, ("right",)))
        solved.append(float(jnp.mean(solving(bandit, state.params, task(1)))))
    assert solved[0] > 0.9
    assert solved[1] < 0.9 * solved[0]
