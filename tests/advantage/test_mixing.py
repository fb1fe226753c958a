"""Rows of several sources under one loss: filters, schedules, controllers, hybrids."""

import chex
import fakes
import jax
import jax.numpy as jnp
import laws
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
from rljax.advantage import gac, mixing
from rljax.learn import update
from rljax.loss import nll, reinforce, supervised
from rljax.rollout import mixed
from rljax.types import NotMeasured


def mixed_rollout():
    """`fakes.rollout` with every source in each group and stored answers."""
    rollout = fakes.rollout()
    source = jnp.tile(jnp.asarray([OWN, OWN, DEMONSTRATION, TEACHER]), (3, 1))
    data = {"answers": jnp.zeros((3, 2, 5), jnp.int32)}
    return rollout.replace(
        samples=rollout.samples.replace(source=source),
        prompts=rollout.prompts.replace(data=data),
    )


TRANSFORMS = {
    "constant_sum": mixing.constant_sum(7),
    "except_single": mixing.except_single(
        adv.center_by_group(), adv.scale_by_group_std(ddof=1)
    ),
    "keep_prompts": mixing.keep_prompts(lambda solved: solved > 0),
    "keep_source": mixing.keep_source(OWN, TEACHER),
    "keep_stored": mixing.keep_stored(),
    "members_from": adv.chain(mixing.members_from(OWN), adv.center_by_group()),
    "weighted_sequence_mean": mixing.weighted_sequence_mean(
        lambda rollout: 1 + rollout.verdict.reward
    ),
}


@laws.over(TRANSFORMS, mixed_rollout)
def test_transforms_obey_the_laws(law, transform, rollout_fn, strict):
    law(transform, rollout_fn())


def kept(transform, rollout):
    """bool[P, G]: rows that still weigh something."""
    credit, _ = transform.update(adv.start(rollout), transform.init(), rollout)
    return jnp.any(credit.weight > 0, -1).tolist()


def test_rows_are_kept_by_source():
    rollout = mixed_rollout()
    assert kept(mixing.keep_source(OWN), rollout) == [[True, True, False, False]] * 3
    assert kept(mixing.keep_stored(), rollout) == [[False, False, True, True]] * 3
    assert kept(mixing.keep_source(OWN, TEACHER), rollout)[0] == [
        True,
        True,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="needs a source"):
        kept(mixing.keep_source(), rollout)


def test_outsiders_get_the_members_baseline():
    # Own rewards 0, 0: baseline 0, so the demonstration with reward 1 has advantage 1.
    # Jointly the mean is 1/3. A group of equal members must not zero an outsider.
    _, rollout = group(
        [Row((0.5,), 0.0), Row((0.5,), 0.0), Row((0.5,), 1.0, DEMONSTRATION)]
    )
    own = adv.chain(mixing.members_from(OWN), adv.center_by_group())
    credit, _ = own.update(adv.start(rollout), own.init(), rollout)
    np.testing.assert_allclose(credit.advantage[0, :, 0], [0, 0, 1])
    joint = adv.center_by_group()
    credit, _ = joint.update(adv.start(rollout), (), rollout)
    np.testing.assert_allclose(credit.advantage[0, :, 0], [-1 / 3, -1 / 3, 2 / 3])


def test_single_members_keep_their_reward():
    # Prompt 1 has one row only, as its second has no token: verl's mean 0, deviation 1.
    _, rollout = group(
        [Row((0.5,), 1.0), Row((0.5,), 0.0)], [Row((0.5,), 3.0), Row(())]
    )
    transform = TRANSFORMS["except_single"]
    credit, _ = transform.update(adv.start(rollout), transform.init(), rollout)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(credit.advantage[:, 0, 0], [half, 3.0], rtol=1e-6)


def test_prompts_are_kept_by_the_success_of_their_own_rollouts():
    # Prompt 0: the demonstration alone is right, which must not open the gate.
    _, rollout = group(
        [Row((0.5,), 0.0), Row((0.5,), 0.0), Row((0.5,), 1.0, DEMONSTRATION)],
        [Row((0.5,), 0.0), Row((0.5,), 1.0), Row((0.5,), 1.0, DEMONSTRATION)],
    )
    transform = mixing.keep_prompts(lambda solved: solved > 0)
    assert kept(transform, rollout) == [[False] * 3, [True] * 3]
    credit, _ = transform.update(adv.start(rollout), (), rollout)
    assert credit.metrics["kept_prompts"] == 0.5


def test_the_schedule_by_hand():
    # Section 3.4; CHORD's is the same function.
    prior = mixing.warmup_cosine(200, 800, 0.85, 0.15)
    got = [float(prior(t)) for t in (0, 100, 200, 400, 600, 1000, 5000)]
    want = [0, 0.425, 0.85, 0.7474874, 0.5, 0.15, 0.15]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert float(mixing.warmup_cosine(0, 10, 0.5, 0.1)(0)) == 0.5


# One controller over several terms.


def shared(loss_fn=None):
    """Two terms with shares v and 1 - v, v counting steps in tenths."""

    def make(value):
        fn = nll() if loss_fn is None else loss_fn(value)
        return adv.algorithm(
            a=adv.Term(fn, adv.chain(adv.token_mean(), adv.scale_weight(value))),
            b=adv.Term(
                reinforce(), adv.chain(adv.token_mean(), adv.scale_weight(1 - value))
            ),
        )

    controller = adv.schedule(lambda step: 0.1 * (1 + step.astype(jnp.float32)))
    return adv.controlled_algorithm(make, controller, lambda credits, rollout: ())


def test_a_controlled_algorithm_shares_one_number_between_terms():
    # Losses 0.5 ln 2 and ln 2 at the first step's v = 0.1 and the second's 0.2.
    now, rollout = group([Row((0.5,), 2.0)])
    algorithm, state = shared(), None
    for v in (0.1, 0.2):
        loss, _, state, metrics = step(algorithm, now, rollout, state)
        np.testing.assert_allclose(loss, (v + 2 * (1 - v)) * np.log(2), rtol=1e-6)
        np.testing.assert_allclose(metrics["control/value"], v, rtol=1e-6)
    assert state.controller == 2


def test_a_loss_function_must_not_hide_the_controlled_value():
    # It would keep the first value for ever, without a word.
    now, rollout = group([Row((0.5,))])
    scaled = lambda v: lambda now, credit, rollout: -v * now.logp  # noqa: E731
    with pytest.raises(ValueError, match="must not depend on the controlled value"):
        step(shared(scaled), now, rollout)


def test_a_controlled_algorithms_state_has_one_structure():
    now, rollout = group([Row((0.5,))])
    algorithm = shared()
    _, _, state, _ = step(algorithm, now, rollout)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, algorithm.init())


def test_a_refused_step_leaves_the_controller_where_it_was():
    bandit = fakes.bandit(8, 3, 6)
    learner = update.learner(bandit.measure, shared(), optax.sgd(1.0))
    state = learner.init(bandit.init(None), jax.random.key(0))
    broken = state.replace(params={"logits": jnp.full((8, 3, 6), jnp.nan)})
    run = program.fused(program.actor(bandit, sampling(bandit)), learner, verify)
    after, metrics = run(broken, task(2))
    assert metrics["update/refused"].tolist() == [1, 1]
    assert after.algorithm.controller == 0


# GAC.


def measurement(mismatch, sft_variance, rl_variance):
    return gac.GacMeasurement(*map(jnp.float32, (mismatch, sft_variance, rl_variance)))


def controlled_once(m, **options):
    controller = gac.gac_controller(**options)
    return controller.update(m, controller.init()[1])


def test_the_share_by_hand():
    # Section 3.4.
    m = measurement(0.6, 0.2, 0.9)
    np.testing.assert_allclose(gac.optimal_share(m), 0.7058824, atol=1e-7)
    value, _ = controlled_once(m)
    np.testing.assert_allclose(value.raw, 0.7058824, atol=1e-7)
    np.testing.assert_allclose(value.mu, 0.5020588, atol=1e-7)
    # A prior of 0.85 wants 0.6760294; one step may change the share by 0.01 only.
    value, _ = controlled_once(m, prior=lambda step: 0.85)
    np.testing.assert_allclose(value.mu, 0.51, atol=1e-7)
    value, _ = controlled_once(m, prior=lambda step: 0.85, max_change=1.0)
    np.testing.assert_allclose(value.mu, 0.6760294, atol=1e-7)


def test_the_limits_of_the_closed_form():
    # Without mismatch inverse-variance weighting, with much of it alpha.
    share = gac.optimal_share(measurement(0, 1, 3))
    np.testing.assert_allclose(share, 0.75, rtol=1e-6)
    share = gac.optimal_share(measurement(1e9, 1, 3), alpha=0.3)
    np.testing.assert_allclose(share, 0.3, rtol=1e-6)


def test_the_share_minimises_the_error_it_is_derived_from():
    alpha, d, s, r = 0.4, 0.7, 0.2, 0.5
    mu = np.linspace(0, 1, 100_001)
    error = (mu - alpha) ** 2 * d + mu**2 * s + (1 - mu) ** 2 * r
    got = gac.optimal_share(measurement(d, s, r), alpha)
    np.testing.assert_allclose(got, mu[np.argmin(error)], atol=2e-5)


def test_measurements_are_taken_in_every_tenth_step():
    controller = gac.gac_controller(keep=0.5, max_change=1.0, low=0.0, high=1.0)
    (_, state), raws = controller.init(), []
    update_ = jax.jit(controller.update)
    for t in range(12):
        value, state = update_(measurement(0.0, 1.0, t), state)
        raws.append(float(value.raw))
    # Step 0: r = 0. Step 10: (0 + 10) / 2 = 5, of it 5 / 6. All others: unread.
    np.testing.assert_allclose(raws, [0.0] * 10 + [5 / 6] * 2, atol=1e-6)
    assert state.last == 10 and state.step == 12


def test_the_mismatch_can_be_capped():
    m = measurement(100.0, 0.2, 0.9)
    free, _ = controlled_once(m)
    capped, _ = controlled_once(m, mismatch_cap=2.0)
    np.testing.assert_allclose(free.raw, 50.9 / 101.1, atol=1e-6)
    np.testing.assert_allclose(capped.raw, (1.1 + 0.9) / 3.3, atol=1e-6)


def gac_batch():
    """Section 3.4's batch: two expert rows and four own ones, constant advantages."""
    rows = [
        Row((0.5, 0.8), source=DEMONSTRATION),
        Row((0.25, 0.25), source=TEACHER),
        Row((0.6, 0.6), 1.0),
        Row((0.9, 0.9), -1.0),
        Row((0.5, 0.5), 1.0),
        Row((0.2, 0.2), -1.0),
    ]
    now, rollout = group(rows)
    return (adv.start(rollout),), rollout.replace(current=now)


def test_the_proxies_by_hand():
    credits, rollout = gac_batch()
    got = jax.jit(gac.gac_proxies(supervised.uncertainty))(credits, rollout)
    np.testing.assert_allclose(got, (0.6255010, 0.2153651, 1.0), atol=2e-7)
    np.testing.assert_allclose(gac.optimal_share(got), 0.7131157, atol=1e-6)
    # Without phi: c_s = -1 on all rows, (c_s - c_r)^2 is 1 on experts, 0 or 4 on own.
    plain = gac.gac_proxies(supervised.unit)(credits, rollout)
    np.testing.assert_allclose(plain.mismatch, (1 + 1 + 0 + 4 + 0 + 4) / 6, rtol=1e-6)


def test_a_missing_branch_has_no_variance():
    # With a floor of 1e-8 in its place mu* would still be finite, but not 0 or alpha.
    def proxies(*rows):
        now, rollout = group(rows)
        rollout = rollout.replace(current=now)
        measure = jax.jit(gac.gac_proxies(supervised.unit))
        return measure((adv.start(rollout),), rollout)

    got = proxies(Row((0.6,), 1.0), Row((0.9,), 0.0))
    assert got.sft_variance == 0 and got.rl_variance == 0.25
    got = proxies(Row((0.6,), 1.0, DEMONSTRATION))
    assert got.rl_variance == 0
    np.testing.assert_allclose(got.sft_variance, 1e-8)


def test_the_variance_is_trimmed_on_both_sides():
    # Section 3.4: of 1..9, 100 the 1 and the 100 go.
    values = jnp.asarray([5.0, 1, 2, 100, 3, 4, 9, 8, 7, 6])
    mask = jnp.ones(10, bool)
    np.testing.assert_allclose(gac.trimmed_variance(values, mask, 0.1), 5.25, rtol=1e-6)
    np.testing.assert_allclose(
        gac.trimmed_variance(values, mask, 0.0), np.var(values), rtol=1e-6
    )
    few = gac.trimmed_variance(values, jnp.arange(10) < 3, 0.4)
    np.testing.assert_allclose(few, np.var([5, 1, 2]), rtol=1e-6)


def test_z_scores_make_the_mismatch_scale_free():
    # Rewards ten times as large leave z-scores where they are, and raw ones not.
    credits, rollout = gac_batch()
    large = (credits[0].replace(advantage=10 * credits[0].advantage),)
    for scale_fn, same in ((gac.z_scores, True), (gac.as_they_are, False)):
        measure = gac.gac_proxies(supervised.uncertainty, scale_fn=scale_fn)
        a, b = measure(credits, rollout), measure(large, rollout)
        assert bool(jnp.isclose(a.mismatch, b.mismatch, rtol=1e-4)) is same


MIXED = mixed.side_by_side(
    sampling(fakes.bandit(8, 3, 6)),
    mixed.with_old(mixed.stored_answers(), fakes.bandit(8, 3, 6).measure),
)


def test_gac_adds_up_over_microbatches():
    # Proxies compare all rows: measured per microbatch they would be others.
    bandit = fakes.bandit(8, 3, 6)
    logits = np.random.default_rng(0).normal(size=(8, 3, 6)).astype(np.float32)
    prompts = jax.tree.map(lambda x: jnp.asarray(x[0]), task(1))
    algorithm = algorithms.gac(max_change=1.0, keep=0.1)
    after = []
    for num in (1, 4):
        learner = update.learner(
            bandit.measure, algorithm, optax.sgd(1.0), num_microbatches=num
        )
        state = learner.init({"logits": jnp.asarray(logits)}, jax.random.key(0))
        rollout = jax.jit(program.actor(bandit, MIXED))(state, prompts)
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: gac.gac_controller(alpha=1.5),
        lambda: gac.gac_controller(initial=0.95),
        lambda: gac.gac_controller(every=0),
        lambda: gac.gac_proxies(supervised.unit, trim=0.5),
        lambda: mixing.warmup_cosine(10, 0, 0.5, 0.1),
        lambda: mixing.constant_sum(0),
    ],
)
def test_numbers_outside_their_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must lie|need"):
        make()


@pytest.mark.parametrize(
    "reduction", [TRANSFORMS["constant_sum"], TRANSFORMS["weighted_sequence_mean"]]
)
def test_a_second_reduction_is_refused(reduction):
    twice = adv.chain(adv.token_mean(), reduction)
    with pytest.raises(ValueError, match="exactly one reduction"):
        twice.update(adv.start(mixed_rollout()), twice.init(), mixed_rollout())


# Hybrids by hand.


def test_chord_mixes_means_over_each_kind_of_rows():
    # Section 6.3: 0.7 * 0.2 + 0.3 * 0.1 = 0.17. Own rows have 3 tokens, the stored one
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
        max_tokens=4, entropy=0.0, statistics=mixing.members_from(OWN)
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
    """Section 6.7: none and two of eight solved, lengths 2 (right) and 1 (wrong)."""
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


HYBRIDS = {
    "luffy": algorithms.luffy(max_tokens=3),
    "chord": algorithms.chord(mu_fn=mixing.warmup_cosine(5, 40, 0.9, 0.05)),
    "gac": algorithms.gac(prior=mixing.warmup_cosine(5, 40, 0.9, 0.05)),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrids_learn_where_rollouts_alone_never_succeed(name):
    # One of 216 completions is right at the start; the answer shown is right.
    bandit = fakes.bandit(8, 3, 6)
    solved, metrics = learned(bandit, HYBRIDS[name], MIXED, task(60, ("right",)))
    assert float(jnp.mean(solved)) > 0.9
    assert float(metrics["update/refused"].sum()) == 0
