"""The algebra of samplers: stored answers, joined groups, measured rows, hints."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mixed import DEMONSTRATION, OWN, TEACHER, bag, sampling, task, verify

from rljax import advantage as adv
from rljax import algorithms, program
from rljax.learn import update
from rljax.rollout import hint, mixed
from rljax.rollout.sample import greedy, sampler
from rljax.types import Missing, NotMeasured, Rollout, Source, TokenStats, Verdict

BANDIT = fakes.bandit(8, 3, 6)
PARAMS = {
    "logits": jnp.asarray(np.random.default_rng(1).normal(size=(8, 3, 6)), jnp.float32)
}
PROMPTS = jax.tree.map(lambda x: jnp.asarray(x[0]), task(1))
KEY = jax.random.key(5)


def draw(sample, prompts=PROMPTS, params=PARAMS):
    return jax.jit(sample)(params, prompts, KEY)


def longer_answers(num_tokens):
    """The prompts with answers padded to more tokens."""
    wide = ((0, 0), (0, 0), (0, num_tokens - 3))
    pad = {k: jnp.pad(PROMPTS.data[k], wide) for k in ("answers", "answers_mask")}
    return PROMPTS.replace(data={**PROMPTS.data, **pad})


def test_stored_answers_are_samples():
    samples, old = draw(mixed.stored_answers())
    np.testing.assert_array_equal(samples.tokens, PROMPTS.data["answers"])
    assert samples.source.tolist() == [[DEMONSTRATION, TEACHER]] * 8
    assert bool(jnp.all(samples.finished))
    for statistic in (old, samples.behaviour):
        with pytest.raises(NotMeasured):
            statistic.logp.shape  # noqa: B018


def test_a_completion_is_one_stored_answer():
    data = {
        "completion": PROMPTS.data["target"],
        "completion_mask": jnp.ones((8, 3), bool),
    }
    samples, _ = draw(mixed.stored_answers(), PROMPTS.replace(data=data))
    np.testing.assert_array_equal(samples.tokens[:, 0], PROMPTS.data["target"])
    assert samples.source.tolist() == [[DEMONSTRATION]] * 8


def test_the_first_answers_can_be_taken_alone():
    samples, _ = draw(mixed.stored_answers(1))
    assert samples.source.tolist() == [[DEMONSTRATION]] * 8


def test_joined_rows_stand_beside_each_other():
    own, _ = draw(sampling(BANDIT))
    samples, old = draw(
        mixed.side_by_side(sampling(BANDIT), mixed.stored_answers()), longer_answers(5)
    )
    assert samples.tokens.shape == (8, 6, 5)
    assert samples.source[0].tolist() == [OWN] * 4 + [DEMONSTRATION, TEACHER]
    # Own rows are those that would have been drawn alone, padded.
    np.testing.assert_array_equal(samples.tokens[:, :4, :3], own.tokens)
    np.testing.assert_array_equal(samples.tokens[:, 4:, :3], PROMPTS.data["answers"])
    assert not bool(jnp.any(samples.mask[..., 3:]))
    assert isinstance(old, Missing) and isinstance(samples.behaviour, Missing)


def test_measured_answers_have_old_statistics_beside_the_samplers():
    answers = mixed.with_old(mixed.stored_answers(), BANDIT.measure)
    samples, old = draw(mixed.side_by_side(sampling(BANDIT), answers))
    chex.assert_trees_all_close(
        old, BANDIT.measure(PARAMS, PROMPTS, samples), atol=1e-5
    )


def test_samplers_of_one_kind_draw_differently():
    # With one key for both, greedy exploration would be of G and not 2 G samples.
    samples, old = draw(mixed.side_by_side(sampling(BANDIT), sampling(BANDIT)))
    assert bool(jnp.any(samples.tokens[:, :4] != samples.tokens[:, 4:]))
    assert isinstance(samples.behaviour, TokenStats) and isinstance(old, TokenStats)


def test_a_greedy_row_joins_sampled_ones():
    likely = greedy(BANDIT, max_tokens=2, stop_tokens=())
    samples, old = draw(mixed.side_by_side(sampling(BANDIT), likely))
    assert samples.source[0].tolist() == [OWN] * 4 + [Source.GREEDY]
    best = jnp.argmax(PARAMS["logits"], -1)[PROMPTS.id]
    np.testing.assert_array_equal(samples.tokens[:, 4, :2], best[:, :2])
    assert old.logp.shape == (8, 5, 3)


def test_absent_answers_count_in_nothing():
    # Prompt 0 has one answer of two. Its empty row would be a failure in the group's
    # mean: 1/2 instead of 1.
    mask = PROMPTS.data["answers_mask"].at[0, 1].set(False)
    prompts = PROMPTS.replace(data={**PROMPTS.data, "answers_mask": mask})
    samples, old = draw(mixed.stored_answers(), prompts)
    assert samples.finished[0].tolist() == [True, False]
    rollout = Rollout(
        prompts=prompts, samples=samples, old=old, verdict=verify(prompts, samples)
    )
    credit = adv.initial_credit(rollout)
    assert credit.member[0, :, 0].tolist() == [True, False]
    assert bool(jnp.all(credit.member[1:]))
    mean = adv.baseline.group_mean(credit)
    np.testing.assert_allclose(mean[:2, 0, 0], [1.0, 0.5])


def test_the_actor_measures_the_reference_on_stored_rows_too():
    reference = {"logits": 2 * PARAMS["logits"]}
    learner = update.learner(BANDIT.measure, algorithms.sft(), optax.sgd(0.1))
    state = learner.init(PARAMS, jax.random.key(0), reference)
    act = program.actor(
        BANDIT, mixed.side_by_side(sampling(BANDIT), mixed.stored_answers())
    )
    rollout = jax.jit(act)(state, PROMPTS)
    want = BANDIT.measure(reference, PROMPTS, rollout.samples)
    chex.assert_trees_all_close(rollout.reference, want, atol=1e-5)


# Bad input.


def without(*names):
    data = {k: v for k, v in PROMPTS.data.items() if k not in names}
    return PROMPTS.replace(data=data)


def test_prompts_without_answers_are_refused():
    with pytest.raises(ValueError, match="add them to the data set"):
        draw(mixed.stored_answers(), without("answers"))


def test_answers_of_wrong_shapes_are_refused():
    wrong = {"answers_mask": jnp.ones((8, 2, 4), bool)}
    with pytest.raises(ValueError, match="pad them to one length"):
        draw(mixed.stored_answers(), PROMPTS.replace(data={**PROMPTS.data, **wrong}))
    wrong = {"answers_source": jnp.zeros((8, 3), jnp.int32)}
    with pytest.raises(ValueError, match="answers_source"):
        draw(mixed.stored_answers(), PROMPTS.replace(data={**PROMPTS.data, **wrong}))
    with pytest.raises(ValueError, match="lower it or store more"):
        draw(mixed.stored_answers(3))
    with pytest.raises(ValueError, match="num_answers"):
        mixed.stored_answers(0)


def test_statistics_of_different_kinds_are_not_joined():
    def valued(params, prompts, samples):
        now = BANDIT.measure(params, prompts, samples)
        return now.replace(extra={"value": now.logp})

    with pytest.raises(ValueError, match="same statistics"):
        draw(
            mixed.side_by_side(
                sampling(BANDIT), mixed.with_old(mixed.stored_answers(), valued)
            )
        )
    with pytest.raises(ValueError, match="at least one sampler"):
        mixed.side_by_side()


# Hints.


def test_the_schedule_of_hints_by_hand():
    # From high to low along half a cosine; at a third of the way cos is 1/2.
    reveal = hint.cosine_reveal()
    got = [float(reveal(t)) for t in (0, 100, 150, 300, 301)]
    np.testing.assert_allclose(got, [0.95, 0.725, 0.5, 0.05, 0], atol=1e-6)
    reveal = hint.cosine_reveal(low=0.2, high=0.6, num_steps=10)
    got = [float(reveal(t)) for t in (0, 5, 10, 11)]
    np.testing.assert_allclose(got, [0.6, 0.4, 0.2, 0], atol=1e-6)


def test_solutions_are_cut_into_pieces_of_sentences():
    ends = hint.piece_ends([[3, 7], [1, 2, 4, 6, 8, 9, 12], []], num_pieces=3)
    assert ends.tolist() == [[3, 7, 0], [4, 8, 12], [0, 0, 0]]
    with pytest.raises(ValueError, match="must increase"):
        hint.piece_ends([[3, 3]])


POLICY = bag(9, 20)
HINTED = fakes.prompts(num_prompts=6, vocab_size=9).replace(
    data={
        "solution": jnp.asarray(
            np.random.default_rng(2).integers(0, 9, (6, 4)), jnp.int32
        ),
        "solution_ends": jnp.asarray([[2, 3, 4], [1, 4, 0]] * 3, jnp.int32),
    }
)


def act_with_hints(probability_fn):
    own = hint.sample_after_hint(
        sampler(POLICY, num_samples=3, max_tokens=5, stop_tokens=(0,))
    )
    row = mixed.with_old(hint.hint_as_row(), POLICY.measure)
    act = program.actor(POLICY, mixed.side_by_side(own, row))
    return hint.reveal_hints(act, probability_fn)


def start(algorithm, optimizer=None):
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    learner = update.learner(POLICY.measure, algorithm, optimizer)
    params = jax.jit(POLICY.init)(jax.random.key(0))
    return learner, learner.init(
        params, jax.random.key(1), jax.tree.map(jnp.copy, params)
    )


@pytest.mark.slow
def test_rollouts_continue_their_hints_under_the_original_prompt():
    # What the sampler says of the continuation after an extended prompt must be what
    # the policy says of it after prompt and hint: a shift by one, a lost or doubled
    # token of the hint or a wrong position would show.
    _, state = start(algorithms.uft())
    rollout = jax.jit(act_with_hints(lambda step: 0.6))(state, HINTED)
    samples, length = rollout.samples, rollout.prompts.data["hint_length"]
    assert set(length.tolist()) <= {0, 1, 2, 3, 4} and len(set(length.tolist())) > 1
    for p, h in enumerate(length.tolist()):
        solution = HINTED.data["solution"][p, :h]
        np.testing.assert_array_equal(samples.tokens[p, :, :h], [solution] * 4)
        assert not bool(jnp.any(samples.mask[p, :3, :h]))
        assert bool(jnp.all(samples.mask[p, :3, h]))
        assert samples.mask[p, 3].tolist() == [t < h for t in range(9)]
    np.testing.assert_array_equal(rollout.prompts.tokens, HINTED.tokens)
    now = jax.jit(POLICY.measure)(state.params, rollout.prompts, samples)
    inside = lambda x: jnp.where(samples.mask, x, 0)  # noqa: E731
    chex.assert_trees_all_close(inside(now.logp), inside(rollout.old.logp), atol=1e-5)


def test_the_number_of_pieces_is_binomial():
    # Mean n q of n = 3 and n = 2 pieces; the draw changes with step and prompt.
    act = hint.reveal_hints(lambda state, prompts: prompts, lambda step: 0.7)
    prompts = HINTED.replace(
        id=jnp.arange(4000),
        data={
            "solution_ends": jnp.tile(jnp.asarray([[1, 2, 3], [1, 2, 0]]), (2000, 1))
        },
    )
    _, state = start(algorithms.sft())
    revealed = jax.jit(act)(state, prompts).data["hint_length"]
    later = jax.jit(act)(state.replace(step=state.step + 1), prompts)
    assert bool(jnp.any(revealed != later.data["hint_length"]))
    counts = np.bincount(revealed[::2], minlength=4) / 2000
    np.testing.assert_allclose(counts, [0.027, 0.189, 0.441, 0.343], atol=0.03)
    np.testing.assert_allclose(np.mean(revealed[1::2]), 1.4, atol=0.05)


@pytest.mark.slow
def test_uft_runs_with_all_and_without_any_hint():
    # All is revealed in the first step, nothing in the second.
    learner, state = start(algorithms.uft())
    act = act_with_hints(lambda step: 1.0 - step)

    def even(prompts, samples):
        return Verdict.binary(jnp.sum(samples.tokens * samples.mask, -1) % 2 == 0)

    run = program.fused(act, learner, even)
    _, metrics = run(state, jax.tree.map(lambda x: jnp.stack([x] * 2), HINTED))
    assert np.isfinite(metrics["update/loss"]).all()
    assert (metrics["update/refused"] == 0).all()


def test_hints_that_nothing_supplies_are_asked_for():
    with pytest.raises(ValueError, match="reveal_hints"):
        draw(hint.hint_as_row(), HINTED)
    act = hint.reveal_hints(lambda state, prompts: prompts, hint.cosine_reveal())
    _, state = start(algorithms.sft())
    with pytest.raises(ValueError, match="piece_ends"):
        act(state, fakes.prompts())
    uft, rollout = algorithms.uft(), fakes.rollout()
    credits, state, _ = uft.credit(rollout, uft.init())
    with pytest.raises(ValueError, match="hint_length"):
        uft.weigh(credits, rollout, state)
