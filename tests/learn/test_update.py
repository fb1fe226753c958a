"""The update: gradients add up over microbatches, refused ones leave no trace."""

from typing import NamedTuple

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import algorithms, loss, mesh
from rljax.advantage import Term, algorithm, chain, stateless
from rljax.learn import origin, update
from rljax.learn.gradient import of_minibatch
from rljax.learn.microbatch import Pieces
from rljax.metric import Max
from rljax.types import Missing, NotMeasured

TABLE = fakes.bandit(num_prompts=8, num_tokens=4, vocab_size=16)
DECODER = fakes.decoder()
KEY = jax.random.key(0)


def parameters(policy):
    shapes = jax.eval_shape(policy.init, KEY)
    draw = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(draw.normal(0, 0.5, x.shape), jnp.float32), shapes
    )


def off_policy(policy, params):
    """8 prompts x 2 samples whose `old` is near the policy: some tokens clip."""
    rows = fakes.rollout(8, 2, 4)
    rows = rows.replace(prompts=fakes.prompts(8))
    now = fakes.jit(policy.measure)(params, rows.prompts, rows.samples)
    noise = np.random.default_rng(1).normal(0, 0.4, (3, 8, 2, 4)).astype(np.float32)
    old = now.replace(logp=now.logp + noise[0], entropy=now.entropy + noise[1])
    reference = now.replace(logp=now.logp + noise[2])
    return rows.replace(old=old, reference=reference).without("current")


def uncertain_tokens(share, name="current"):
    """Keeps the tokens above a quantile of entropy over all prompts (for tests)."""

    def keep(credit, rollout):
        entropy = getattr(rollout, name).entropy
        seen = jnp.where(rollout.samples.mask, entropy, jnp.nan)
        high = entropy >= jnp.nanquantile(seen, 1 - share)
        return credit.replace(weight=jnp.where(high, credit.weight, 0.0))

    return stateless(keep)


def fade():
    term = Term(loss.clipped_ratio(), adv.token_mean(), adv.fade_advantage())
    return algorithm(policy=term)


def grpo_with_kl_and_entropy():
    advantage = chain(adv.center_by_group(), adv.scale_by_group_std())
    return algorithm(
        policy=Term(loss.clipped_ratio(0.2, 0.28), adv.sequence_mean(), advantage),
        kl=Term(loss.kl_k3(), chain(adv.token_mean(), adv.scale_weight(0.1))),
        entropy=Term(
            loss.entropy_bonus(), chain(adv.constant_length(4), adv.scale_weight(0.05))
        ),
    )


def quantile(name="current"):
    weighting = chain(uncertain_tokens(0.4, name), adv.token_mean())
    return algorithm(
        policy=Term(loss.clipped_ratio(), weighting, adv.center_by_group())
    )


def gradient(policy, method, num_micro, rollout, params, first=False, lengths=1):
    """(gradient, coefficient, metrics) of one optimiser step."""

    @fakes.jit
    def run(params, rollout, first):
        learner = update.learner(policy.measure, method, optax.sgd(1.0))
        state = learner.init(params, KEY)
        credits, algorithm_state, _ = method.credit(rollout, state.algorithm)
        state = state.replace(algorithm=algorithm_state)
        pieces = Pieces(num_micro, lengths)
        found = of_minibatch(
            policy.measure, method, pieces, credits, rollout, state, first
        )
        return found.grads, found.coefficient, found.metrics | {"loss": found.loss}

    return run(params, rollout, jnp.asarray(first))


PARAMS = parameters(TABLE)
ROLLOUT = off_policy(TABLE, PARAMS)


@pytest.mark.parametrize(
    "method",
    [fade(), grpo_with_kl_and_entropy(), quantile()],
    ids=["fade", "grpo", "q"],
)
def test_microbatches_add_up(method):
    # Weighing each microbatch alone would average four quantiles and four divisors.
    want = gradient(TABLE, method, 1, ROLLOUT, PARAMS)
    for num_micro in (2, 8):
        got = gradient(TABLE, method, num_micro, ROLLOUT, PARAMS)
        chex.assert_trees_all_close(got, want, atol=1e-6)


def test_microbatches_of_a_decoder_add_up():
    # Here all prompts share all parameters.
    params = parameters(DECODER)
    rollout = off_policy(DECODER, params)
    method = quantile()
    want = gradient(DECODER, method, 1, rollout, params)
    assert float(optax.tree.norm(want[0])) > 0.1
    got = gradient(DECODER, method, 8, rollout, params)
    chex.assert_trees_all_close(got, want, atol=2e-6, rtol=1e-5)


# Pieces by length.


def long_and_short(policy, params):
    """8 prompts x 4 samples of 1 to 16 tokens, most of them short; masks have holes."""
    draw = np.random.default_rng(3)
    length = np.minimum(1 + draw.geometric(0.25, (8, 4)), 16)
    rows = fakes.rollout(8, 4, 16, length=length).replace(prompts=fakes.prompts(8))
    mask = rows.samples.mask.at[:, 1, 1].set(False)
    rows = rows.replace(samples=rows.samples.replace(mask=mask))
    now = fakes.jit(policy.measure)(params, rows.prompts, rows.samples)
    noise = draw.normal(0, 0.4, (3, 8, 4, 16)).astype(np.float32)
    return rows.replace(
        old=now.replace(logp=now.logp + noise[0], entropy=now.entropy + noise[1]),
        reference=now.replace(logp=now.logp + noise[2]),
    ).without("current")


BY_LENGTH = {
    "fade": fade(),
    "grpo": grpo_with_kl_and_entropy(),
    "quantile": quantile(),
    "minpro": algorithms.minpro(),
}
WIDE = fakes.bandit(8, 16, 16)


@pytest.mark.parametrize("method", BY_LENGTH.values(), ids=BY_LENGTH)
@pytest.mark.parametrize(("num_micro", "lengths"), [(1, 4), (4, 2)])
def test_pieces_by_length_add_up(method, num_micro, lengths):
    params = parameters(WIDE)
    rollout = long_and_short(WIDE, params)
    want = gradient(WIDE, method, 1, rollout, params)
    got = gradient(WIDE, method, num_micro, rollout, params, lengths=lengths)
    chex.assert_trees_all_close(got, want, atol=1e-6)


def test_pieces_by_length_are_computed_up_to_their_longest_row():
    params = parameters(WIDE)
    rollout = long_and_short(WIDE, params)
    seen = []

    def measure(params, prompts, samples, reference=None):
        jax.debug.callback(lambda x: seen.append(x.shape), samples.tokens)
        return WIDE.measure(params, prompts, samples)

    policy = WIDE._replace(measure=measure)
    gradient(policy, fade(), 2, rollout, params, lengths=4)
    jax.effects_barrier()
    assert len(seen) == 8 and {shape[:2] for shape in seen} == {(4, 1)}
    mask = np.asarray(rollout.samples.mask)
    length = -np.sort(-np.max(mask * np.arange(1, 17), -1), 1)
    halves = length[np.argsort(-length.sum(1), kind="stable")].reshape(2, 4, 4)
    sizes = 4 * np.ceil(halves.max(1) / 4)  # of the longest row of each piece
    assert sorted(shape[2] for shape in seen) == sorted(sizes.ravel())
    assert np.mean(sizes) <= 8  # of 16


def test_pieces_by_length_of_a_decoder_on_a_mesh():
    params = parameters(DECODER)
    rollout = long_and_short(DECODER, params)
    want = gradient(DECODER, fade(), 1, rollout, params)
    assert float(optax.tree.norm(want[0])) > 0.1
    devices = mesh.make()
    with jax.set_mesh(devices):
        sharded = mesh.shard_prompts(rollout, devices)
        copies = mesh.replicate(params, devices)
        got = gradient(DECODER, fade(), 1, sharded, copies, lengths=4)
    got, want = jax.device_get((got, want))
    chex.assert_trees_all_close(got, want, atol=2e-6, rtol=1e-5)


def test_a_group_must_divide_into_lengths():
    state, learn = learner(fade(), num_lengths=3)
    with pytest.raises(ValueError, match="multiple of num_lengths = 3, got 2"):
        learn(state, ROLLOUT)


# The gradient against a loss written down in one piece.


def naive(params, rollout, policy_loss):
    now = TABLE.measure(params, rollout.prompts, rollout.samples)
    ratio = jnp.exp(now.logp - rollout.old.logp)
    reward = rollout.verdict.reward
    centred = (reward - reward.mean(1, keepdims=True))[..., None]
    mask = rollout.samples.mask.astype(jnp.float32)
    return policy_loss(now, ratio, centred, mask, rollout)


def naive_grpo(now, ratio, centred, mask, rollout):
    std = jnp.sqrt(jnp.mean(centred**2, 1, keepdims=True))
    a = jnp.where(std > 0, centred / jnp.where(std > 0, std, 1), 0)
    clipped = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.28) * a)
    policy = jnp.mean(jnp.sum(clipped * mask, -1) / jnp.sum(mask, -1))
    d = rollout.reference.logp - now.logp
    kl = jnp.sum((jnp.exp(d) - 1 - d) * mask) / jnp.sum(mask)
    entropy = jnp.sum(now.entropy * mask) / (8 * 2 * 4)
    return policy + 0.1 * kl - 0.05 * entropy


def naive_quantile(now, ratio, centred, mask, rollout):
    clipped = -jnp.minimum(ratio * centred, jnp.clip(ratio, 0.8, 1.2) * centred)
    entropy = np.asarray(now.entropy)[np.asarray(mask, bool)]
    keep = mask * (now.entropy >= np.quantile(entropy, 0.6))
    return jnp.sum(clipped * keep) / jnp.sum(keep)


@pytest.mark.parametrize(
    ("method", "policy_loss"),
    [(grpo_with_kl_and_entropy(), naive_grpo), (quantile(), naive_quantile)],
    ids=["grpo", "quantile"],
)
def test_the_gradient_is_that_of_the_naive_loss(method, policy_loss):
    if policy_loss is naive_quantile:  # its weights are constants of the loss
        now = TABLE.measure(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
        entropy = now.entropy

        def fixed(now, *rest):
            return naive_quantile(now.replace(entropy=entropy), *rest)

        policy_loss = fixed
    value, want = jax.value_and_grad(naive)(PARAMS, ROLLOUT, policy_loss)
    grads, _, metrics = gradient(TABLE, method, 2, ROLLOUT, PARAMS)
    chex.assert_trees_all_close(grads, want, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-6)


def test_the_first_step_takes_current_from_old_and_later_ones_measure_it():
    known = ROLLOUT.replace(origin=origin.of(PARAMS, ROLLOUT.old))
    later = gradient(TABLE, quantile(), 2, known, PARAMS, first=False)
    first = gradient(TABLE, quantile(), 2, known, PARAMS, first=True)
    by_old = gradient(TABLE, quantile("old"), 2, known, PARAMS)
    chex.assert_trees_all_close(first[1], by_old[1], atol=1e-6)
    assert float(jnp.max(jnp.abs(first[1] - later[1]))) > 0.01


def test_without_old_current_is_measured_at_every_step():
    method = algorithm(
        sft=Term(loss.nll(), chain(uncertain_tokens(0.4), adv.token_mean()))
    )
    bare = ROLLOUT.replace(old=Missing("old", "a sampler supplies it"))
    want = gradient(TABLE, method, 1, bare, PARAMS, first=True)
    chex.assert_trees_all_close(
        gradient(TABLE, method, 2, bare, PARAMS, first=True), want, atol=1e-6
    )


def test_only_a_weighting_that_reads_current_costs_another_forward():
    def forwards(method):
        traced = []

        def measure(*args):
            traced.append(1)
            return TABLE.measure(*args)

        gradient(TABLE._replace(measure=measure), method, 2, ROLLOUT, PARAMS)
        return len(traced)

    assert forwards(quantile()) > forwards(quantile("old")) == forwards(fade())


def test_what_lies_outside_the_mask_may_be_nan():
    want = gradient(TABLE, fade(), 2, ROLLOUT, PARAMS)
    logp = jnp.where(ROLLOUT.samples.mask, ROLLOUT.old.logp, jnp.nan)
    holes = ROLLOUT.replace(old=ROLLOUT.old.replace(logp=logp))
    chex.assert_trees_all_close(
        gradient(TABLE, fade(), 2, holes, PARAMS), want, atol=1e-6
    )


def test_a_statistic_nobody_measures_is_named_when_traced():
    bare = ROLLOUT.replace(reference=Missing("reference", "start with a reference"))
    with pytest.raises(NotMeasured, match="start with a reference"):
        gradient(TABLE, grpo_with_kl_and_entropy(), 1, bare, PARAMS)


# Learning on a rollout batch.


def learner(method, optimizer=None, **options):
    optimizer = optax.adam(0.1) if optimizer is None else optimizer
    made = update.learner(TABLE.measure, method, optimizer, **options)
    return made.init(PARAMS, KEY), fakes.jit(made.learn)


def counting():
    """A reduction that counts how often it was used."""
    mean = adv.token_mean()

    def weigh(credit, state, rollout):
        return mean.update(credit, (), rollout)[0], state + 1

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
        loss.clipped_ratio(), counting(), adv.fade_advantage(entropy_target=5.0)
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
        algorithm(policy=Term(loss.clipped_ratio(), counting(), adv.fade_advantage())),
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

    def weigh(credit, state, rollout):
        ids = state.ids.at[state.step].set(rollout.prompts.id)
        return mean.update(credit, (), rollout)[0], Seen(ids, state.step + 1)

    def init():
        return Seen(jnp.full((num_steps, size), -1), jnp.zeros((), jnp.int32))

    return adv.AdvantageTransform(init, weigh)


def test_every_pass_uses_every_prompt_once_in_an_order_of_its_own():
    term = Term(loss.clipped_ratio(), recording(8, 4), adv.fade_advantage())
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
    term = Term(loss.clipped_ratio(), recording(2, 4), adv.center_by_group())
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


METRICS = {
    "gap/sampler_learner_max",
    "gap/sampler_learner_mean",
    "mass/clipped_share",
    "mass/difficulty",
    "mass/effective_groups",
    "mass/log_ratio",
    "mass/negative",
    "mass/positive",
    "mass/zero_share",
    "policy/alpha",
    "policy/delta",
    "policy/entropy_nats",
    "policy/fault/reward_out_of_range",
    "policy/h_ema",
    "policy/kl_old_nats",
    "policy/p_ema",
    "update/gradient_norm",
    "update/loss",
    "update/moved_share",
    "update/refused",
    "update/refused_in_row",
    "update/steps",
}


@pytest.mark.parametrize(
    "options", [{}, {"num_passes": 2, "num_minibatches": 2, "num_microbatches": 2}]
)
def test_metrics_are_complete_float32_scalars(options):
    state, learn = learner(fade(), **options)
    _, metrics = learn(state, ROLLOUT)
    assert set(metrics) == METRICS
    assert {(m.shape, m.dtype.name) for m in jax.tree.leaves(metrics)} == {
        ((), "float32")
    }


def test_the_gap_is_taken_before_the_first_step_only():
    # Later the policy has moved: that is learning, not a mismatch.
    now = fakes.jit(TABLE.measure)(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
    on_policy = ROLLOUT.replace(old=now.replace(logp=now.logp + 0.125))
    state, learn = learner(fade(), optax.sgd(10.0), num_passes=3)
    _, metrics = learn(state, on_policy)
    assert float(metrics["gap/sampler_learner_max"].value) == pytest.approx(
        0.125, abs=1e-5
    )


def test_masses_are_those_of_the_coefficients():
    # On-policy, one token per row: m_S = m_F = mean of p q over groups; clipping none.
    rows = fakes.solved(2, 1, 1, 1, 0, 2, 1, 1, 0).replace(prompts=fakes.prompts(8))
    rows = rows.replace(
        old=fakes.jit(TABLE.measure)(PARAMS, rows.prompts, rows.samples)
    )
    term = Term(loss.clipped_ratio(), adv.token_mean(), adv.center_by_group())
    state, learn = learner(algorithm(policy=term))
    _, metrics = learn(state, rows)
    want = {
        "positive": 5 / 8 / 4,
        "negative": 5 / 8 / 4,
        "log_ratio": 0.0,
        "difficulty": 0.5,
        "effective_groups": 5.0,
        "zero_share": 3 / 8,
        "clipped_share": 0.0,
    }
    got = {k: metrics[f"mass/{k}"] for k in want}
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_the_clipped_share_counts_pushed_tokens_without_coefficient():
    # All ratios 2: successes (half of the tokens with an advantage) are clipped.
    rows = fakes.solved(2, *[1] * 7, 0).replace(prompts=fakes.prompts(8))
    now = fakes.jit(TABLE.measure)(PARAMS, rows.prompts, rows.samples)
    rows = rows.replace(old=now.replace(logp=now.logp - jnp.log(2.0)))
    state, learn = learner(fade())
    assert float(learn(state, rows)[1]["mass/clipped_share"]) == 0.5


def test_what_the_weighting_drops_is_not_clipped():
    # On-policy nothing clips; the six tokens of ten that are dropped are not pushed.
    now = fakes.jit(TABLE.measure)(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
    for num_micro in (1, 2):
        state, learn = learner(quantile(), num_microbatches=num_micro)
        _, metrics = learn(state, ROLLOUT.replace(old=now))
        assert metrics["mass/clipped_share"] == 0


def test_prompts_must_divide_into_the_pieces():
    state, learn = learner(fade(), num_minibatches=3)
    with pytest.raises(ValueError, match=r"multiple of .* = 3, got 8 prompts"):
        learn(state, ROLLOUT)
