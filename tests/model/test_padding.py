"""Padding is never read: ids of no vocabulary behind a prompt or outside the mask."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import algorithms, loss, numerics, program
from rljax.advantage import Term, algorithm, token_mean
from rljax.learn import update
from rljax.model import probe
from rljax.policy import against_reference, privileged_teacher, with_value_head
from rljax.rollout import hint, mixed, sample

P, G, S, T, V = 2, 3, 5, 6, 16
POLICY = fakes.decoder(num_layers=2)
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
MEASURE = jax.jit(POLICY.measure)
PROMPTS = fakes.prompts(P, S).replace(length=jnp.array([3, 2]))
SAMPLES = fakes.rollout(P, G, T, length=[[1, 4, 6], [3, 2, 5]]).samples

# What other tools pad with: labels of torch, numpy's smallest, one too many, and -1 and
# -16, which silently are the last and the first row of a table.
JUNK = [-100, np.iinfo(np.int32).min, V, 2**31 - 1, -1, -V]


def filled(prompts, samples, junk):
    """The same rows with `junk` behind the prompts and outside the mask."""
    inside = jnp.arange(prompts.tokens.shape[1]) < prompts.length[:, None]
    return (
        prompts.replace(tokens=jnp.where(inside, prompts.tokens, junk)),
        samples.replace(tokens=jnp.where(samples.mask, samples.tokens, junk)),
    )


def within(mask, tree):
    """The numbers of the tokens under the mask; [P, G, T, ...]."""
    return jax.tree.map(lambda x: x[np.asarray(mask)], tree)


def gradient_of(measure):
    """The function to the gradient of a sum of all under the mask, and statistics."""

    def total(params, prompts, samples):
        stats = measure(params, prompts, samples)
        parts = [x if x.ndim == 3 else x.mean(-1) for x in jax.tree.leaves(stats)]
        return sum(jnp.sum(jnp.where(samples.mask, x, 0.0)) for x in parts), stats

    return jax.jit(jax.grad(total, has_aux=True))


def with_reference(params, prompts, samples):
    measure = against_reference(POLICY, max_logits=120)
    reference = jax.tree.map(lambda p: 0.9 * p, PARAMS)
    return measure(params, prompts, samples, reference)


MEASURES = {
    "whole": (POLICY.measure, PARAMS),
    "in chunks": (fakes.decoder(num_layers=2, max_logits=120).measure, PARAMS),
    "untied head": (
        fakes.decoder(tie_embeddings=False).measure,
        jax.jit(fakes.decoder(tie_embeddings=False).init)(jax.random.key(1)),
    ),
    "value head": (
        with_value_head(POLICY, d_model=32, max_logits=120).measure,
        {"policy": PARAMS, "value": {"kernel": jnp.ones(32), "bias": jnp.zeros(())}},
    ),
    "divergence": (with_reference, PARAMS),
    "probe": (probe.recorded(POLICY.measure), PARAMS),
}


# The value head and the divergence work in chunks, too.
SLOW = ("in chunks", "untied head")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in MEASURES
    ],
)
def test_measuring_and_its_gradient_read_no_padding(name):
    # An id looked up outside the table is a row of NaN, and 0 * NaN is NaN: in the keys
    # that attention masks, in the row, and in the gradient of all parameters.
    measure, params = MEASURES[name]
    gradient = gradient_of(measure)
    want = gradient(params, *filled(PROMPTS, SAMPLES, 7))
    for junk in JUNK:
        got = gradient(params, *filled(PROMPTS, SAMPLES, junk))
        chex.assert_tree_all_finite(got)
        # The gradient of the chi-squared divergence is of the size of 20.
        chex.assert_trees_all_close(got[0], want[0], atol=1e-4, rtol=1e-5)
        stats = (within(SAMPLES.mask, x[1]) for x in (got, want))
        chex.assert_trees_all_close(*stats, atol=1e-5, rtol=1e-5)


def test_the_sampler_draws_the_same_whatever_lies_behind_the_prompt():
    draw = jax.jit(
        sample.sampler(POLICY, num_samples=G, max_tokens=T, stop_tokens=(0,))
    )
    key = jax.random.key(3)
    want = draw(PARAMS, filled(PROMPTS, SAMPLES, 7)[0], key)
    for junk in JUNK:
        got = draw(PARAMS, filled(PROMPTS, SAMPLES, junk)[0], key)
        chex.assert_trees_all_equal(got, want)


def test_tokens_in_a_hole_of_the_mask_are_still_context():
    # Tool output is outside the mask and read. Clearing all that lies outside it would
    # make the two rows equal.
    mask = SAMPLES.mask.at[0, 2, 1].set(False)
    other = SAMPLES.tokens.at[0, 2, 1].add(1) % V
    one = MEASURE(PARAMS, PROMPTS, SAMPLES.replace(mask=mask)).logp[0, 2]
    two = MEASURE(PARAMS, PROMPTS, SAMPLES.replace(mask=mask, tokens=other)).logp[0, 2]
    assert np.all(np.abs(one - two)[2:] > 1e-5)


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_id_where_it_is_read_is_nan_and_never_another_token(junk):
    # The log-probability would be that of the most likely token; -1 the last row's.
    samples = SAMPLES.replace(tokens=SAMPLES.tokens.at[0, 2, 5].set(junk))
    logp = MEASURE(PARAMS, PROMPTS, samples).logp
    assert np.isnan(logp[0, 2, 5]) and np.isfinite(logp).sum() == logp.size - 1
    prompts = PROMPTS.replace(tokens=PROMPTS.tokens.at[1, 0].set(junk))
    logp = MEASURE(PARAMS, prompts, SAMPLES).logp
    assert np.all(np.isnan(logp[1])) and np.all(np.isfinite(logp[0]))


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"num_microbatches": 2, "num_lengths": 3},
    ],
)
def test_an_update_takes_the_same_step_whatever_lies_in_the_padding(pieces):
    learner = update.learner(
        POLICY.measure, algorithms.grpo(), optax.sgd(0.1), **pieces
    )
    learn = jax.jit(learner.learn)

    def step(junk):
        prompts, samples = filled(PROMPTS, SAMPLES, junk)
        rollout = fakes.rollout(P, G, T, reward=[[1, 0, 0], [0, 1, 1]])
        old = MEASURE(PARAMS, prompts, samples)
        rollout = rollout.replace(prompts=prompts, samples=samples, old=old)
        state = learner.init(PARAMS, jax.random.key(0))
        state, metrics = learn(state, rollout)
        return state.params, metrics

    got, want = step(-100), step(7)
    assert got[1]["update/refused"] == 0
    chex.assert_trees_all_close(got, want, atol=1e-6, rtol=1e-5)
    moved = jnp.abs(want[0]["norm"]["scale"] - PARAMS["norm"]["scale"])
    assert float(moved.max()) > 1e-3


def test_demonstrations_padded_with_minus_100_are_learned():
    sft = algorithm(nll=Term(weighting=token_mean(), loss_fn=loss.nll()))
    learner = update.learner(POLICY.measure, sft, optax.sgd(0.1))
    act, learn = program.actor(POLICY, mixed.stored_answers()), jax.jit(learner.learn)

    def step(junk):
        prompts, samples = filled(PROMPTS, SAMPLES, junk)
        data = {
            "completion": samples.tokens[:, 1],
            "completion_mask": SAMPLES.mask[:, 1],
        }
        state = learner.init(PARAMS, jax.random.key(0))
        return learn(state, act(state, prompts.replace(data=data)))[0].params

    chex.assert_trees_all_close(step(-100), step(7), atol=1e-6)


def test_a_privileged_prompt_is_read_up_to_its_length():
    teacher = privileged_teacher(POLICY)
    state = update.learner(POLICY.measure, algorithms.grpo(), optax.sgd(0.1)).init(
        PARAMS, jax.random.key(0)
    )

    teacher = jax.jit(teacher)

    def measure(junk):
        told = filled(PROMPTS, SAMPLES, junk)[0]
        data = {"privileged": told.tokens, "privileged_length": told.length}
        return teacher(state, PROMPTS.replace(data=data), SAMPLES)

    chex.assert_trees_all_close(measure(-100), measure(7), atol=1e-6)


def test_hints_and_stored_answers_may_be_padded_with_anything():
    # Solutions behind their hint, and answers outside their masks. An absent answer's
    # row is all padding.
    answers_mask = SAMPLES.mask.at[1, 2].set(False)
    sources = mixed.side_by_side(
        hint.sample_after_hint(
            sample.sampler(POLICY, num_samples=2, max_tokens=4, stop_tokens=(0,))
        ),
        mixed.with_old(hint.hint_as_row(), POLICY.measure),
        mixed.with_old(mixed.stored_answers(), POLICY.measure),
    )

    sources = jax.jit(sources)

    def draw(junk):
        prompts, samples = filled(PROMPTS, SAMPLES.replace(mask=answers_mask), junk)
        length = jnp.array([2, 0])
        solution = jnp.where(jnp.arange(4) < length[:, None], 5, junk)
        data = {
            "answers": samples.tokens,
            "answers_mask": answers_mask,
            "answers_source": samples.source + 2,
            "solution": solution,
            "hint_length": length,
        }
        prompts = prompts.replace(data=data)
        got, old = sources(PARAMS, prompts, jax.random.key(1))
        return got, old, MEASURE(PARAMS, prompts, got)

    (got, *stats), (want, *expected) = draw(-100), draw(7)
    chex.assert_trees_all_equal(got.mask, want.mask)
    assert np.any(np.asarray(got.tokens) == -100)  # the test would test nothing
    chex.assert_tree_all_finite(stats)
    inside = (within(got.mask, x) for x in (stats, expected))
    chex.assert_trees_all_close(*inside, atol=1e-6)


def test_readable_ids_by_hand():
    tokens = jnp.array([3, -1, 4, 2**31 - 1, 3, -100, 4])
    read = jnp.array([1, 1, 1, 1, 0, 0, 0], bool)
    got = numerics.readable_ids(tokens, read, 4)
    assert got.tolist() == [3, 4, 4, 4, 3, 0, 0] and got.dtype == tokens.dtype
