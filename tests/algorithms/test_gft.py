"""GFT: its numbers, its limits, and mixed groups from sampler to parameters."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mixed import (
    DEMONSTRATION,
    OWN,
    TEACHER,
    Row,
    group,
    learned,
    sampling,
    step,
    task,
    verify,
)

from rljax import advantage as adv
from rljax import algorithms, program
from rljax.learn import update
from rljax.loss import reinforce, supervised
from rljax.rollout import mixed
from rljax.types import Missing, NotMeasured, Rollout

gft = algorithms.gft


def mixed_rewards(*rewards):
    """One group of one-token rows: a demonstration, teachers, then own rollouts."""
    half = len(rewards) // 2
    source = [DEMONSTRATION] + [TEACHER] * (half - 1) + [OWN] * (len(rewards) - half)
    rows = zip(rewards, source, strict=True)
    return group([Row((0.5,), float(r), s) for r, s in rows])


@pytest.mark.parametrize(
    ("rewards", "want"),
    [
        ((1, 1, 0, 1, 0, 1, 0, 0), 0.9354126),
        ((1, 0, 0, 1), 0.8660239),
        ((1, 1, 1, 1), 0.0),
    ],
)
def test_the_group_advantage_by_hand(rewards, want):
    # E1. Statistics run over all sources, with ddof 1: ddof 0 would give 1, statistics
    # of own rows alone other numbers for each half.
    _, rollout = mixed_rewards(*rewards)
    (credit,), _, _ = gft().credit(rollout, gft().init())
    sign = 2 * np.array(rewards) - 1
    np.testing.assert_allclose(credit.advantage[0, :, 0], want * sign, atol=1e-7)


def e2():
    """Two rows with advantages +-0.9354126, filled up to E1's group by others."""
    rows = [(0.9, 0.04, 0.6), (0.5, 0.8)]
    now, rollout = group([Row(p) for p in rows])
    credit = fakes.credit_of(rollout, jnp.array([[0.9354126, -0.9354126]]))
    return now, rollout, adv.token_mean().update(credit, rollout, ())[0]


@pytest.mark.parametrize("exceeds", [jnp.greater, jnp.greater_equal])
@pytest.mark.parametrize(("tau", "loss"), [(0.55, 0.0327814), (0.45, -0.0320565)])
def test_the_rectified_loss_by_hand(tau, loss, exceeds):
    # E2; at tau 0.5 the two rules give these two numbers for the token with p = 0.5.
    now, rollout, credit = e2()
    weight_fn = supervised.threshold(tau, exceeds)
    loss_fn = supervised.reweighted(reinforce(), weight_fn)
    tokens = loss_fn(now, credit, rollout)
    np.testing.assert_allclose(
        tokens[0, 0], [0.0985556, 0.1204391, 0.4778327], atol=1e-7
    )
    np.testing.assert_allclose(tokens[0, 1, 1], -0.2087313, atol=1e-7)
    first = -0.3241893 if tau == 0.55 else -0.6483786
    np.testing.assert_allclose(tokens[0, 1, 0], first, atol=1e-7)
    mask = rollout.samples.mask

    def total(now):
        values = credit.weight * loss_fn(now, credit, rollout)
        return jnp.sum(jnp.where(mask, values, 0))

    np.testing.assert_allclose(total(now), loss, atol=1e-7)
    grads = jax.grad(total)(now).logp
    c = weight_fn(now, credit, rollout)
    want = -credit.advantage * c / 5
    np.testing.assert_allclose(grads[mask], want[mask], rtol=1e-6)


def test_the_two_rules_differ_exactly_at_the_threshold():
    now, rollout = group([Row((0.3, 0.5, 0.7))])
    tau = float(jnp.exp(now.logp)[0, 0, 1])  # 0.5 as the loss computes it
    code = supervised.threshold(tau)(now, None, rollout)
    paper = supervised.threshold(tau, jnp.greater_equal)(now, None, rollout)
    np.testing.assert_allclose(code[0, 0], [0.3, 0.5, 1], rtol=1e-6)
    np.testing.assert_allclose(paper[0, 0], [0.3, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("exceeds", [jnp.greater, jnp.greater_equal])
def test_the_inverse_probability_weight_is_bounded(exceeds):
    # E3: C / p, at most 1 / tau.
    p = (0.04, 0.1, 0.3, 0.5, 0.6, 0.9)
    now, rollout = group([Row(p)])
    c = supervised.threshold(0.11, exceeds)(now, None, rollout)
    want = [1, 1, 3.3333333, 2, 1.6666667, 1.1111111]
    np.testing.assert_allclose(c[0, 0] / np.array(p), want, rtol=1e-6)


# Limits.


def test_without_rectification_it_is_reinforce_with_a_group_baseline():
    now, rollout = group([Row((0.9, 0.04)), Row((0.3,), 0.0), Row((0.6, 0.2), 0.0)])
    baseline = adv.chain(
        adv.center_by_group(), adv.scale_by_group_std(ddof=1, epsilon=1e-6)
    )
    plain = adv.algorithm(
        policy=adv.Term(
            advantage=baseline, weighting=adv.token_mean(), loss_fn=reinforce()
        )
    )
    chex.assert_trees_all_close(
        step(gft(tau=0.0), now, rollout)[:2], step(plain, now, rollout)[:2], rtol=1e-6
    )


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_full_rectification_with_advantage_one_is_dft(tau):
    # A single demonstration keeps its reward as advantage: mean 0, deviation 1.
    now, rollout = group([Row((0.9, 0.04, 0.6), 1.0, DEMONSTRATION)])
    chex.assert_trees_all_close(
        step(gft(tau=tau), now, rollout)[:2], step(algorithms.dft(), now, rollout)[:2]
    )


def test_a_single_demonstration_without_rectification_is_sft():
    now, rollout = group([Row((0.9, 0.04, 0.6), 1.0, DEMONSTRATION)])
    chex.assert_trees_all_close(
        step(gft(tau=0.0), now, rollout)[:2], step(algorithms.sft(), now, rollout)[:2]
    )


def test_it_pushes_wrong_demonstrations_down():
    # Verified like rollouts: were stored rows trusted, it would be pushed up.
    rows = [Row((0.8,), 0.0, DEMONSTRATION), Row((0.3,), 1.0), Row((0.2,), 0.0)]
    _, coefficient, _, _ = step(gft(), *group(rows))
    assert coefficient[0, 0, 0] < 0 < coefficient[0, 1, 0]


# From sampler to parameters.


def mixed_rollout(policy, params, prompts):
    sample = mixed.side_by_side(sampling(policy), mixed.stored_answers())
    samples, old = sample(params, prompts, jax.random.key(3))
    return Rollout(
        prompts=prompts, samples=samples, verdict=verify(prompts, samples), old=old
    )


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_mixed_group_moves_the_parameters_by_its_gradient(num_microbatches):
    # By hand: the gradient of GFT's loss with respect to the logits.
    bandit = fakes.bandit(8, 3, 6)
    logits = np.random.default_rng(0).normal(size=(8, 3, 6)).astype(np.float32)
    params = {"logits": jnp.asarray(logits)}
    prompts = jax.tree.map(lambda x: jnp.asarray(x[0]), task(1))
    rollout = jax.jit(lambda p: mixed_rollout(bandit, p, prompts))(params)
    assert isinstance(rollout.old, Missing)
    assert rollout.samples.source[0].tolist() == [OWN] * 4 + [DEMONSTRATION, TEACHER]

    reward = np.asarray(rollout.verdict.reward)
    assert (reward[:, 4] == 1).all() and (reward[:, 5] == 0).all()
    spread = reward.std(1, ddof=1, keepdims=True) + 1e-6
    advantage = (reward - reward.mean(1, keepdims=True)) / spread

    def by_hand(logits):
        logp = jnp.moveaxis(jax.nn.log_softmax(logits), -1, 1)[:, :, None]  # P V 1 T
        tokens = rollout.samples.tokens[:, None]
        logp = jnp.take_along_axis(logp, tokens, 1)[:, 0]
        p = jax.lax.stop_gradient(jnp.exp(logp))
        return jnp.mean(-advantage[..., None] * jnp.where(p > 0.3, 1, p) * logp)

    want = jax.grad(by_hand)(params["logits"])
    learner = update.learner(
        bandit.measure,
        gft(tau=0.3),
        optax.sgd(1.0),
        num_microbatches=num_microbatches,
    )
    state = learner.init(params, jax.random.key(0))
    after, metrics = jax.jit(learner.learn)(state, rollout)
    np.testing.assert_allclose(logits - after.params["logits"], want, atol=1e-6)
    assert metrics["mass/positive"] > 0 and metrics["mass/negative"] > 0
    assert "gap/sampler_learner_max" not in metrics


@pytest.mark.slow
def test_a_decoder_trains_on_mixed_groups():
    policy = fakes.decoder(vocab_size=6)
    learner = update.learner(policy.measure, gft(), optax.adam(3e-3))
    state = learner.init(jax.jit(policy.init)(jax.random.key(0)), jax.random.key(1))
    sample = mixed.side_by_side(sampling(policy, 2), mixed.stored_answers())
    run = program.fused(program.actor(policy, sample), learner, verify)
    _, metrics = run(state, task(3))
    assert np.isfinite(metrics["update/loss"]).all()
    assert (metrics["update/gradient_norm"] > 0).all()
    assert (metrics["reward/mean"] >= 0.25).all()  # the demonstration of each four


def test_methods_with_a_ratio_say_how_to_measure_old():
    bandit = fakes.bandit(8, 3, 6)
    ratio = adv.algorithm(
        policy=adv.Term(
            weighting=adv.token_mean(), loss_fn=lambda now, c, r: now.logp - r.old.logp
        )
    )
    sample = mixed.side_by_side(sampling(bandit), mixed.stored_answers())
    with pytest.raises(NotMeasured, match=r"with_old\(stored_answers\(\), policy"):
        learned(bandit, ratio, sample, task(1))


def test_it_learns_where_rollouts_alone_never_succeed():
    # 1 of 216 completions is right: without the demonstration there is no reward. The
    # teacher answer is wrong; a method that imitates both would end at 1/8.
    bandit = fakes.bandit(8, 3, 6)
    sample = mixed.side_by_side(sampling(bandit), mixed.stored_answers())
    solved, metrics = learned(bandit, gft(tau=0.5), sample, task(60))
    assert float(jnp.min(solved)) > 0.9
    assert metrics["reward/mean"][-1] > 0.8 > 0.3 > metrics["reward/mean"][0]
