"""Layouts are declared: what has a token axis is not told by the sizes of arrays."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax.layout import over_tokens, take
from rljax.learn import update
from rljax.rollout import mixed
from rljax.rollout.sample import sampler
from rljax.types import Missing, NotMeasured, TokenStats, is_measured

P, G, T = 8, 4, 4


def cut(x):
    return x[:, :, :2]


def everywhere_of_size_t():
    """A rollout with arrays [P, G, T] of which some have no token axis."""
    rows = fakes.rollout(P, G, T)
    extra = {"per_token": jnp.ones((P, G, T, 3))}
    row_extra = {"per_sample": jnp.ones((P, G, T)), "score": jnp.ones((P, G))}
    data = {"answers": jnp.ones((P, G, T))}
    return rows.replace(
        old=rows.old.replace(extra=extra, row_extra=row_extra),
        prompts=rows.prompts.replace(data=data),
    )


def test_only_token_axes_are_cut():
    rows = over_tokens(cut, everywhere_of_size_t())
    assert rows.samples.tokens.shape == rows.samples.mask.shape == (P, G, 2)
    assert rows.samples.behaviour.logp.shape == rows.current.entropy.shape == (P, G, 2)
    assert rows.old.extra["per_token"].shape == (P, G, 2, 3)
    assert rows.old.row_extra["per_sample"].shape == (P, G, T)
    assert rows.old.row_extra["score"].shape == rows.verdict.reward.shape == (P, G)
    assert rows.prompts.data["answers"].shape == (P, G, T)


def test_credit_is_cut_where_it_is_per_token():
    credit = adv.initial_credit(fakes.rollout(P, G, T))
    got = over_tokens(cut, {"some": (credit, jnp.zeros((P, G, T)))})["some"]
    assert got[0].weight.shape == got[1].shape == (P, G, 2)
    assert got[0].advantage.shape == got[0].member.shape == (P, G, 1)
    wide = credit.replace(advantage=jnp.zeros((P, G, T)))
    assert over_tokens(cut, wide).advantage.shape == (P, G, 2)


def test_what_is_missing_stays_missing():
    rows = over_tokens(cut, fakes.rollout(P, G, T).without("old", "verdict"))
    assert not is_measured(rows.old) and not is_measured(rows.verdict)
    assert is_measured(rows.current)
    bare = over_tokens(cut, TokenStats(logp=jnp.zeros((P, G, T))))
    assert not is_measured(bare.entropy)


def test_an_extra_without_token_axis_is_told_where_it_belongs():
    stats = TokenStats(logp=jnp.zeros((P, G, T)), extra={"x": jnp.zeros((P, G))})
    with pytest.raises(ValueError, match=r"extra\['x'\] must begin .* `row_extra`"):
        over_tokens(cut, stats)


def test_without_takes_statistics_only():
    rows = fakes.rollout().without("reference")
    assert isinstance(rows.reference, Missing) and is_measured(rows.old)
    with pytest.raises(ValueError, match="got 'samples'; use `replace`"):
        rows.without("samples")


def test_take_takes_prompts():
    rows = take(fakes.rollout(P, G, T), jnp.array([3, 1]))
    assert rows.samples.tokens.shape == (2, G, T)
    want = fakes.rollout(P, G, T).prompts.id[jnp.array([3, 1])]
    chex.assert_trees_all_equal(rows.prompts.id, want)


TABLE = fakes.bandit(P, T, 16)


def scored(params, prompts, samples, reference=None):
    """Statistics with K = T numbers per sample: how often each quarter was drawn."""
    now = TABLE.measure(params, prompts, samples)
    quarter = samples.tokens[..., None] // 4 == jnp.arange(T)
    count = jnp.sum(quarter & samples.mask[..., None], 2, dtype=jnp.float32)
    total = jnp.sum(params["logits"][prompts.id], (1, 2))
    return now.replace(row_extra={"count": count * total[:, None, None]})


def test_numbers_of_whole_samples_come_whole_to_every_piece():
    # Cut to a piece's tokens, the sum would lack the later quarters.
    def loss_fn(now, credit, rollout):
        weights = jnp.arange(1.0, T + 1)
        return now.logp + jnp.sum(now.row_extra["count"] * weights, -1)[..., None]

    method = adv.algorithm(policy=adv.Term(weighting=adv.token_mean(), loss_fn=loss_fn))
    params = {
        "logits": jnp.asarray(
            np.random.default_rng(0).normal(size=(P, T, 16)), jnp.float32
        )
    }
    length = np.tile([1, 1, 2, 4], (P, 1))
    rows = fakes.rollout(P, G, T, length=length).replace(prompts=fakes.prompts(P))

    def moved(**pieces):
        made = update.learner(scored, method, optax.sgd(1.0), **pieces)
        state, _ = jax.jit(made.learn)(made.init(params, jax.random.key(0)), rows)
        return jax.tree.map(jnp.subtract, state.params, params)

    want = moved()
    got = moved(num_microbatches=2, num_lengths=4)
    chex.assert_trees_all_close(got, want, atol=2e-5, rtol=1e-5)


def test_joined_samples_are_padded_along_their_tokens_only():
    # Four numbers per sample beside completions of two tokens: not to be padded to 4.
    def short(params, prompts, key):
        sample = sampler(TABLE, num_samples=2, max_tokens=2, stop_tokens=())
        samples, old = sample(params, prompts, key)
        return samples, old.replace(row_extra={"k": jnp.ones((P, 2, 2))})

    def long(params, prompts, key):
        sample = sampler(TABLE, num_samples=2, max_tokens=4, stop_tokens=())
        samples, old = sample(params, prompts, key)
        return samples, old.replace(row_extra={"k": jnp.ones((P, 2, 2))})

    sample = mixed.side_by_side(short, long)
    params = TABLE.init(None)
    samples, old = jax.jit(sample)(params, fakes.prompts(P), jax.random.key(0))
    assert samples.tokens.shape == old.logp.shape == (P, 4, 4)
    assert old.row_extra["k"].shape == (P, 4, 2)


@pytest.mark.parametrize("num_microbatches", [1, 2])
def test_a_loss_function_that_reads_current_is_told_to_read_now(num_microbatches):
    # It was given with one microbatch and missing with two.
    def loss_fn(now, credit, rollout):
        return now.logp - rollout.current.logp

    method = adv.algorithm(policy=adv.Term(weighting=adv.token_mean(), loss_fn=loss_fn))
    made = update.learner(
        TABLE.measure, method, optax.sgd(1.0), num_microbatches=num_microbatches
    )
    state = made.init(TABLE.init(None), jax.random.key(0))
    rows = fakes.rollout(P, G, T).replace(prompts=fakes.prompts(P))
    with pytest.raises(NotMeasured, match=r"only `weighting` .* given `now`"):
        jax.eval_shape(made.learn, state, rows)
