"""Losses of mixed groups by hand: CHORD, LUFFY, SRFT, HPT, GAC; and that they learn."""

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
from rljax.advantage import gac
from rljax.algorithms import hybrid
from rljax.learn import update
from rljax.loss import supervised
from rljax.rollout import mixed
from rljax.types import NotMeasured


def test_gacs_prior_by_hand():
    # 0.85 t / 200, then 0.15 + 0.35 (1 + cos(pi (t - 200) / 800)), then 0.15.
    prior = hybrid.README_PRIOR
    got = [float(prior(t)) for t in (0, 100, 200, 400, 600, 1000, 5000)]
    want = [0, 0.425, 0.85, 0.7474874, 0.5, 0.15, 0.15]
    np.testing.assert_allclose(got, want, atol=1e-6)


MIXED = mixed.side_by_side(
    sampling(fakes.bandit(8, 3, 6)),
    mixed.with_old(mixed.stored_answers(), fakes.bandit(8, 3, 6).measure),
)


def test_gac_adds_up_over_microbatches():
    # Proxies compare all rows: measured per microbatch they would be others.
    bandit = fakes.bandit(8, 3, 6)
    logits = np.random.default_rng(0).normal(size=(8, 3, 6)).astype(np.float32)
    prompts = jax.tree.map(lambda x: jnp.asarray(x[0]), task(1))
    controller = gac.gac_controller(max_change=1.0, keep=0.1, prior=hybrid.README_PRIOR)
    algorithm = algorithms.gac(controller=controller)
    act = jax.jit(program.actor(bandit, MIXED))
    after = []
    for num in (1, 4):
        learner = update.learner(
            bandit.measure, algorithm, optax.sgd(1.0), num_microbatches=num
        )
        state = learner.init({"logits": jnp.asarray(logits)}, jax.random.key(0))
        rollout = act(state, prompts)
        rollout = rollout.replace(verdict=verify(prompts, rollout.samples))
        state, metrics = jax.jit(learner.learn)(state, rollout)
        after.append((state.params, state.algorithm, metrics["control/mu"]))
    chex.assert_trees_all_close(*after, rtol=1e-5, atol=1e-6)
    assert abs(after[0][2] - 0.5) > 0.01


def test_states_share_no_buffer():
    # Runs donate them: a shared one would be donated twice, or be gone the second time.
    algorithm = algorithms.gac()
    leaves = jax.tree.leaves((algorithm.init(), algorithm.init()))
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)


# Hybrids by hand.


def test_chord_mixes_means_over_each_kind_of_rows():
    # 0.7 * 0.2 + 0.3 * 0.1 = 0.17. Own rows have 3 tokens, the stored one
    # has 1: a mean over all tokens would weigh the terms 3 : 1 once more.
    mu, a, e = 0.3, np.sqrt(0.5), np.exp(-0.1)
    r = (1 - 0.6 / a) / 2
    now, rollout = group(
        [
            Row((r / 2, r / 2), 1.0, old=(0.5, 0.5)),
            Row((0.5,), 0.0, old=(0.5,)),
            Row((e,), 1.0, DEMONSTRATION),
        ]
    )
    make = algorithms.chord(
        mu_fn=lambda step: jnp.float32(mu), weight_fn=supervised.unit
    )
    # GRPO: own advantages a and -a, ratios r and 1: a (-r - r + 1) / 3 = 0.2.
    loss, coefficient, _, metrics = step(make, now, rollout)
    np.testing.assert_allclose(loss, 0.17, rtol=1e-5)
    np.testing.assert_allclose(
        coefficient[0, :, 0], [0.7 * a * r / 3, -0.7 * a / 3, 0.3], rtol=1e-5
    )
    np.testing.assert_allclose(metrics["control/value"], mu)
    phi = step(algorithms.chord(mu_fn=lambda step: jnp.float32(mu)), now, rollout)[1]
    np.testing.assert_allclose(phi[0, 2, 0], 0.3 * e * (1 - e), rtol=1e-5)


def luffy_group():
    return group(
        [
            Row((0.5, 0.2), 0.0, old=(0.4, 0.4)),
            Row((0.3,), 1.0, old=(0.3,)),
            Row((0.1, 0.9), 1.0, DEMONSTRATION),
        ]
    )


def test_luffy_by_hand():
    # Joint mean 2/3; sums over the constant length 4, divided by nothing else.
    algorithm = algorithms.luffy(max_tokens=4, entropy=0.0)
    now, rollout = luffy_group()
    loss, coefficient, _, _ = step(algorithm, now, rollout)
    ratios = -2 / 3 * (1.25 + 0.5) + 1 / 3 * 1.0
    shaped = 1 / 3 * (0.5 + 0.9)
    np.testing.assert_allclose(loss, -(ratios + shaped) / 4, rtol=1e-5)
    np.testing.assert_allclose(
        coefficient[0],
        np.array([[-2 / 3 * 1.25, -2 / 3 * 0.5], [1 / 3, 0], [0.25 / 3, 0.03]]) / 4,
        rtol=1e-5,
    )
    # Statistics of own rows alone: mean 1/2 for all.
    own = algorithms.luffy(
        max_tokens=4, entropy=0.0, statistics=adv.restrict_members(OWN)
    )
    _, coefficient, _, _ = step(own, now, rollout)
    np.testing.assert_allclose(coefficient[0, 2, 0], 0.5 * 0.25 / 4, rtol=1e-5)


def test_luffys_entropy_bonus_lowers_the_loss():
    plain, bonus = (
        step(algorithms.luffy(max_tokens=4, entropy=c), *luffy_group())[0]
        for c in (0.0, 0.5)
    )
    np.testing.assert_allclose(plain - bonus, 0.5 * 1.0, rtol=1e-5)  # all entropies 1


def test_srft_by_hand():
    # H = 0.5 in all rows; joint GRPO advantage of rewards 1, 0, 1: 3^-1/2.
    e = 0.5
    now, rollout = group(
        [
            Row((0.5, 0.4), 1.0, DEMONSTRATION, entropy=e),
            Row((0.2,), 0.0, entropy=e),
            Row((0.3,), 1.0, entropy=e),
        ]
    )
    loss, coefficient, _, _ = step(algorithms.srft(max_tokens=8), now, rollout)
    a = np.sqrt(1 / 3)
    sft = 0.3032653 * -(np.log(0.5) + np.log(0.4)) / 2
    demo = -a * (0.5 + 0.4) / 8
    own = (0.1648721 * -np.log(0.3) + np.log(0.2)) / 8
    np.testing.assert_allclose(loss, sft + demo + own, atol=1e-6)
    np.testing.assert_allclose(
        coefficient[0, :, 0],
        [0.3032653 / 2 + a * 0.5 / 8, -1 / 8, 0.1648721 / 8],
        rtol=1e-5,
    )


def hpt_group(demonstration=(0.5, 0.25)):
    """None and two of eight solved, lengths 2 (right) and 1 (wrong)."""
    wrong, right = Row((0.5,), 0.0), Row((0.5, 0.5), 1.0)
    shown = Row(demonstration, 1.0, DEMONSTRATION)
    return group([wrong] * 8 + [shown], [right] * 2 + [wrong] * 6 + [shown])


def test_hpt_by_hand():
    loss, coefficient, _, metrics = step(algorithms.hpt(max_tokens=8), *hpt_group())
    np.testing.assert_allclose(loss, 0.85222077, atol=1e-7)
    np.testing.assert_allclose(coefficient[0, 8], [0.5, 0.5])
    np.testing.assert_allclose(coefficient[0, :8], 0)
    np.testing.assert_allclose(coefficient[1, :3, 0], [0.75 / 8, 0.75 / 8, -0.25 / 8])
    np.testing.assert_allclose(coefficient[1, 8], 0)
    assert metrics["sft/kept_prompts"] == metrics["policy/kept_prompts"] == 0.5


def test_hpts_gate_takes_the_demonstration_at_equality():
    # Two are solved, gate 2: with "<" prompt 1 would still learn its rollouts.
    _, coefficient, _, metrics = step(
        algorithms.hpt(max_tokens=8, gate=2), *hpt_group()
    )
    assert metrics["sft/kept_prompts"] == 1
    np.testing.assert_allclose(coefficient[:, :8], 0)
    np.testing.assert_allclose(coefficient[:, 8], 0.25)


def test_hpts_coefficient_scales_imitation_alone():
    loss = step(algorithms.hpt(max_tokens=8, coefficient=0.3), *hpt_group())[0]
    np.testing.assert_allclose(loss, 0.3 * 1.03972077 - 0.1875, atol=1e-7)


def test_ratios_on_mixed_groups_need_measured_answers():
    bandit = fakes.bandit(8, 3, 6)
    blind = mixed.side_by_side(sampling(bandit), mixed.stored_answers())
    with pytest.raises(NotMeasured, match="measured"):
        learned(bandit, algorithms.chord(), blind, task(1))


SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 0.9, 5, 45, 0.05)


HYBRIDS = {
    "luffy": algorithms.luffy(max_tokens=3),
    "chord": algorithms.chord(mu_fn=SCHEDULE),
    "gac": algorithms.gac(controller=gac.gac_controller(prior=SCHEDULE)),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "gac"))
        for name in HYBRIDS
    ],
)
def test_hybrids_learn_where_rollouts_alone_never_succeed(name):
    # One of 216 completions is right at the start; the answer shown is right.
    bandit = fakes.bandit(8, 3, 6)
    solved, metrics = learned(bandit, HYBRIDS[name], MIXED, task(60, ("right",)))
    assert float(jnp.mean(solved)) > 0.9
    assert float(metrics["update/refused"].sum()) == 0
