"""Recipes of the token-level family: wiring by hand, traced numbers, a learner step."""

import inspect

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import algorithms, loss
from rljax.learn import gate, update

RECIPES = {
    "ace": algorithms.ace,
    "cispo": algorithms.cispo,
    "clip_cov": algorithms.clip_cov,
    "dapo": lambda **n: algorithms.dapo(max_tokens=5, buffer=3, **n),
    "dasd": algorithms.dasd,
    "geometric_rejection": lambda low=0.2, floor=0.5, cap=2.0: (
        algorithms.geometric_rejection(low=low, floor=floor, cap=cap)
    ),
    "gmpo": algorithms.gmpo,
    "gspo": algorithms.gspo,
    "gspo_token": algorithms.gspo_token,
    "icepop": algorithms.icepop,
    "justrl": algorithms.justrl,
    "kl_cov": algorithms.kl_cov,
    "minirl": algorithms.minirl,
    "minpro": algorithms.minpro,
    "ppo": algorithms.ppo,
    "sapo": algorithms.sapo,
    "sequence_mask": algorithms.sequence_mask,
    "sequence_mask_tis": lambda low=0.2, floor=0.5, cap=2.0: (
        algorithms.sequence_mask_tis(low=low, floor=floor, cap=cap)
    ),
    "skywork_or1": algorithms.skywork_or1,
    "stapo": algorithms.stapo,
    "tis": algorithms.tis,
    "top_entropy": algorithms.top_entropy,
    "truncated_reinforce": algorithms.truncated_reinforce,
    "turn_ppo": algorithms.turn_ppo,
}


def rows():
    """Mixed groups, and values where a critic looks for them."""
    made = fakes.rollout(reward=[[1, 0, 0, 1], [1, 1, 1, 0], [0, 0, 1, 0]])
    old = made.current.replace(
        logp=made.current.logp * 0.98, extra={"value": made.old.entropy}
    )
    now = made.current.replace(extra={"value": made.reference.entropy})
    behaviour = old.replace(logp=old.logp * 1.02)
    samples = made.samples.replace(behaviour=behaviour)
    return made.replace(old=old, current=now, samples=samples)


def coefficient(method, rollout):
    """-dL/d(statistics) of the first optimiser step, and the metrics."""
    credits, state, metrics = method.credit(rollout, method.init())
    credits, _, more = method.weigh(credits, rollout, state)
    pull = jax.grad(method.loss)(rollout.current, credits, rollout)
    return jax.tree.map(jnp.negative, pull), metrics | more


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_pushes_tokens_and_its_numbers_may_be_traced(name):
    # A population is a vmap over a recipe's numbers: none may be read by Python.
    recipe = RECIPES[name]
    numbers = {
        k: p.default
        for k, p in inspect.signature(recipe).parameters.items()
        if isinstance(p.default, int | float)
    }
    rollout = rows()
    pull, metrics = jax.jit(lambda n: coefficient(recipe(**n), rollout))(numbers)
    mask = np.asarray(rollout.samples.mask)
    pushed = np.asarray(pull.logp)[mask]
    assert np.isfinite(pushed).all() and np.abs(pushed).max() > 0
    assert (np.asarray(pull.logp)[~mask] == 0).all()
    assert all(np.isfinite(m) for m in jax.tree.leaves(metrics))


def pushed(method, rollout):
    return np.asarray(jax.jit(lambda r: coefficient(method, r)[0].logp)(rollout))


def test_dapo_by_hand():
    # Two right and two wrong of 2, 4, 5, 5 tokens; at most 5, buffer 2: penalties 0,
    # -.5, -1, -1, so R = 1, .5, -2, -2: mean -.625, sample deviation 1.6007810594.
    made = fakes.rollout(
        2,
        4,
        5,
        reward=[[1, 1, 0, 0], [1, 1, 1, 1]],
        length=[[2, 4, 5, 5], [2, 4, 5, 5]],
    )
    made = made.replace(old=made.current)
    got = pushed(algorithms.dapo(max_tokens=5, buffer=2), made)
    a = (np.array([1, 0.5, -2, -2]) + 0.625) / (1.6007810594 + 1e-6)
    want = np.asarray(made.samples.mask)[0] * a[:, None] / 16
    np.testing.assert_allclose(got[0], want, rtol=1e-5)
    # All right: no push, though lengths tell its rewards apart, nor room in the mean.
    np.testing.assert_array_equal(got[1], 0)


def test_dapos_slope_is_a_fifth_of_the_tokens_unless_it_is_given():
    # 4096 of 20480 in arXiv 2503.14476; here 2 of 10.
    made = fakes.rollout(1, 4, 10, reward=[[1, 1, 0, 0]], length=[[8, 9, 10, 3]])
    made = made.replace(old=made.current)
    got, want = (
        pushed(algorithms.dapo(max_tokens=10, **n), made) for n in ({}, {"buffer": 2})
    )
    np.testing.assert_array_equal(got, want)


def test_minirl_by_hand():
    # arXiv 2512.01374, eq. 7 (SECONDARY): a token pushes by M min(w, 5) A, w = pi / mu.
    # The mean reward is 1/4, so A is 0.75 or -0.25. Every row has r = pi / pi_old =
    # e^(.3, 0, -.3, 0) = (1.350, 1, 0.741, 1) and w = e^(.25, .2, -.2, 2) = (1.284,
    # 1.221, 0.819, 7.389 -> 5). M is 0 where A > 0 and r > 1.27 (the first token), or
    # A < 0 and r < 0.8 (the third). The objective of a row is sum M min(w, 5) A log pi.
    # A bound in the place of the mask would push the first token of A = .75 by
    # .75 * 1.284, and capping the ratio to old at 5 the last one by .75 alone.
    made = fakes.rollout(1, 8, 4, reward=[[1, 0, 0, 1, 0, 0, 0, 0]], length=[[4] * 8])

    def stats(logp):
        return made.current.replace(logp=jnp.broadcast_to(jnp.asarray(logp), (1, 8, 4)))

    now, old = stats([-1, -0.5, -2, -0.1]), stats([-1.3, -0.5, -1.7, -0.1])
    behaviour = stats([-1.25, -0.7, -1.8, -2.1])
    samples = made.samples.replace(behaviour=behaviour)
    made = made.replace(old=old, current=now, samples=samples)
    got = 8 * pushed(algorithms.minirl(), made)[0]  # the mean runs over 8 responses
    good, bad = [0, 0.916052, 0.614048, 3.75], [-0.321006, -0.305351, 0, -1.25]
    want = [good if i in (0, 3) else bad for i in range(8)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    method = algorithms.minirl()
    credits, state, _ = method.credit(made, method.init())
    credits, _, _ = method.weigh(credits, made, state)
    objective = (2 * -2.061122 + 6 * 0.598682) / 8
    assert float(method.loss(now, credits, made)) == pytest.approx(-objective, rel=1e-5)


def test_twenty_entropys_divisors_differ_by_the_fraction_kept():
    made = rows()
    released = pushed(algorithms.top_entropy(fraction=0.3), made)
    equation = pushed(
        algorithms.top_entropy(fraction=0.3, divisor_fn=algorithms.over_all), made
    )
    count = int(jnp.sum(made.samples.mask))
    ratio = count / np.ceil(round(0.3 * count, 6))
    np.testing.assert_allclose(released, ratio * equation, rtol=1e-5)


def test_on_policy_the_clipped_family_is_one_method():
    # At ratio 1 nothing clips, every gate and weight is 1.
    made = rows()
    made = made.replace(
        old=made.current, samples=made.samples.replace(behaviour=made.current)
    )
    want = pushed(algorithms.justrl(), made)
    for recipe in (
        algorithms.cispo(),
        algorithms.minpro(),
        algorithms.tis(),
        algorithms.icepop(),
        algorithms.sequence_mask(),
        algorithms.truncated_reinforce(),
        algorithms.geometric_rejection(),
        algorithms.kl_cov(),
        algorithms.skywork_or1(),
    ):
        np.testing.assert_allclose(pushed(recipe, made), want, rtol=1e-5, atol=1e-7)
    # Sequence means instead of the token mean.
    by_row = adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.sequence_mean(),
            loss_fn=loss.unclipped_ratio(),
        )
    )
    want = pushed(by_row, made)
    for recipe in (algorithms.gspo_token(), algorithms.gmpo(), algorithms.sapo()):
        np.testing.assert_allclose(pushed(recipe, made), want, rtol=1e-5, atol=1e-7)


def test_dgg_and_clip_cov_learn_together():
    policy = fakes.bandit(4, 2, 8)
    made = update.learner(
        policy.measure,
        algorithms.clip_cov(),
        optax.sgd(1.0),
        gate=gate.gradient_gate(lambda grads: grads, window=2),
        num_passes=2,
        num_minibatches=2,
        num_microbatches=2,
    )
    rows = fakes.rollout(4, 4, 2)
    rows = rows.replace(samples=rows.samples.replace(tokens=rows.samples.tokens % 8))
    params = policy.init(None)
    rows = rows.replace(old=policy.measure(params, rows.prompts, rows.samples))
    state, metrics = jax.jit(made.learn)(made.init(params, jax.random.key(0)), rows)
    assert float(jnp.abs(state.params["logits"]).max()) > 0
    assert {"gate/energy", "gate/gated", "policy/dropped_share"} <= set(metrics)
    assert int(state.algorithm.weighting[0][1]) == int(
        metrics["update/steps"] * (1 - metrics["update/refused"])
    )
