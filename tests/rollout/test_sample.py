"""The sampler draws what it says it draws, and the same whatever stands around it."""

import functools
import pathlib
import re

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from benchmarks import long_tail
from rljax import data, mesh, numerics
from rljax.data import tokenizer
from rljax.model import decoder_policy, hugging_face
from rljax.rollout.draw import truncate
from rljax.rollout.sample import greedy, sampler
from rljax.types import Source

STOP = 3
KEY = jax.random.key(7)
PROMPTS = fakes.prompts(num_prompts=8)
POLICY = fakes.decoder()
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))
TABLE = fakes.bandit(num_prompts=8, num_tokens=8, vocab_size=16)
COLD = fakes.bandit(8, 8, 16, temperature=0.6)
NUMBERS = {"logits": 2 * jax.random.normal(jax.random.key(1), (8, 8, 16))}


@functools.cache
def jitted(policy, **options):
    options = {"num_samples": 4, "max_tokens": 8, "stop_tokens": (STOP,)} | options
    return jax.jit(sampler(policy, **options))


def draw(prompts=PROMPTS, policy=POLICY, params=PARAMS, key=KEY, **options):
    return jitted(policy, **options)(params, prompts, key)


@functools.partial(jax.jit, static_argnums=0)
def learner(policy, params, samples):
    """Statistics and logits by the learner's pass over whole completions."""
    logits = policy.logits(params, policy.hidden(params, PROMPTS, samples))
    return policy.measure(params, PROMPTS, samples), logits


def close_inside(mask, got, want, atol=1e-5):
    got, want = (jax.tree.map(lambda x: jnp.where(mask, x, 0), t) for t in (got, want))
    chex.assert_trees_all_close(got, want, atol=atol, rtol=0)


# What it returns agrees with the learner.


@pytest.mark.parametrize(
    ("policy", "params", "options"),
    [
        (POLICY, PARAMS, {}),
        (fakes.decoder(temperature=1.5), PARAMS, {"top_k": 5, "top_p": 0.6}),
        (COLD, NUMBERS, {}),
        (TABLE, NUMBERS, {"top_k": 3}),
        (TABLE, NUMBERS, {"top_p": 0.7}),
    ],
    ids=["plain", "all", "temperature", "top_k", "top_p"],
)
def test_statistics_equal_the_learners(policy, params, options):
    # The most valuable test of all: a cache off by one position shows here.
    samples, old = draw(policy=policy, params=params, **options)
    mask = samples.mask
    assert 0.2 < float(jnp.mean(mask)) < 1  # some rows end early, some do not
    want, logits = learner(policy, params, samples)
    close_inside(mask, old, want)
    kept, mass = truncate(logits, options.get("top_k"), options.get("top_p"))
    logp, entropy = numerics.logp_and_entropy(kept, samples.tokens)
    close_inside(mask, samples.behaviour.logp, logp, atol=3e-5)
    close_inside(mask, samples.behaviour.entropy, entropy, atol=3e-5)
    close_inside(mask, samples.behaviour.extra["kept_mass"], mass)


def test_behaviour_is_old_at_defaults_and_another_distribution_otherwise():
    samples, old = draw()
    chex.assert_trees_all_equal(samples.behaviour.logp, old.logp)
    samples, old = draw(policy=COLD, params=NUMBERS)
    chex.assert_trees_all_equal(samples.behaviour.logp, old.logp)
    samples, old = draw(policy=TABLE, params=NUMBERS, top_k=3)
    # Truncation only adds mass to what is left: log mu = log pi - log kept.
    want = old.logp - jnp.log(samples.behaviour.extra["kept_mass"])
    close_inside(samples.mask, samples.behaviour.logp, want)


def test_greedy_takes_the_most_likely_token_and_is_certain_of_it():
    sample = jax.jit(greedy(POLICY, max_tokens=8, stop_tokens=(STOP,)))
    samples, old = sample(PARAMS, PROMPTS, KEY)
    assert samples.tokens.shape == (8, 1, 8)
    want, logits = learner(POLICY, PARAMS, samples)
    best = jnp.argmax(logits, -1)
    assert bool(jnp.all(jnp.where(samples.mask, samples.tokens == best, True)))
    close_inside(samples.mask, old, want)
    assert float(jnp.max(jnp.abs(samples.behaviour.logp))) == 0
    assert bool(jnp.all(samples.source == Source.GREEDY))
    assert bool(jnp.all(draw()[0].source == Source.OWN))


# Truncation, by hand: softmax(2, 1, 0, -1) is .64391, .23688, .08714, .03206, with
# logarithms -.44019, -1.44019 and so on; the first two have mass .88080, of which they
# are .73106 and .26894, with logarithms -.31326 and -1.31326.


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept", "log_mu"),
    [
        (None, 0.8, 0.88079708, [-0.31326169, -1.31326169]),
        (None, 0.6, 0.64391426, [0.0]),
        (2, None, 0.88079708, [-0.31326169, -1.31326169]),
        # top-p sees the renormalised two: the first has .731 of them.
        (2, 0.7, 0.64391426, [0.0]),
        (None, 1.0, 1.0, [-0.44018970, -1.44018970, -2.44018970, -3.44018970]),
        (9, None, 1.0, [-0.44018970, -1.44018970, -2.44018970, -3.44018970]),
    ],
)
def test_truncation_by_published_numbers(top_k, top_p, kept, log_mu):
    logits, mass = truncate(jnp.array([2.0, 1, 0, -1]), top_k, top_p)
    assert float(mass) == pytest.approx(kept, abs=1e-6)
    want = jnp.array(log_mu + [-jnp.inf] * (4 - len(log_mu)))
    chex.assert_trees_all_close(jax.nn.log_softmax(logits), want, atol=1e-6)


# The same sample whatever stands around it.


def assert_same(got, want):
    (samples, old), (want_samples, want_old) = got, want
    chex.assert_trees_all_equal(samples.tokens, want_samples.tokens)
    chex.assert_trees_all_equal(samples.mask, want_samples.mask)
    chex.assert_trees_all_close(old, want_old, atol=1e-5)


def test_samples_do_not_depend_on_batch_order_or_padding():
    # Three of the eight prompts, backwards, with three more slots of garbage each.
    want = jax.tree.map(lambda x: x[4:1:-1], draw())
    few = jax.tree.map(lambda x: x[4:1:-1], PROMPTS)
    tokens = jnp.pad(few.tokens, ((0, 0), (0, 3)), constant_values=11)
    assert_same(draw(few.replace(tokens=tokens)), want)


def test_fewer_samples_or_tokens_are_a_prefix():
    samples, old = draw()
    short, short_old = draw(num_samples=2, max_tokens=5)
    chex.assert_trees_all_equal(short.tokens, samples.tokens[:, :2, :5])
    chex.assert_trees_all_close(short_old.logp, old.logp[:, :2, :5], atol=1e-5)
    one, _ = draw(policy=TABLE, params=NUMBERS, max_tokens=1)
    more, _ = draw(policy=TABLE, params=NUMBERS, top_k=99)
    chex.assert_trees_all_equal(one.tokens, more.tokens[..., :1])


def test_samples_do_not_depend_on_sharding():
    devices = mesh.make()
    assert devices.size == 8
    with jax.set_mesh(devices):
        sharded = mesh.shard_prompts(PROMPTS, devices)
        got = draw(sharded, params=mesh.replicate(PARAMS, devices))
        spread = got[0].tokens.sharding
    assert not spread.is_fully_replicated
    assert_same(jax.device_get(got), draw())


def test_every_identity_has_randomness_of_its_own():
    # The same distribution everywhere: only step, prompt and sample id can differ.
    params = {"logits": jnp.zeros((8, 8, 16))}

    def tokens(ids, key=KEY):
        prompts = PROMPTS.replace(id=ids)
        samples, _ = draw(prompts, TABLE, params, key, stop_tokens=())
        return samples.tokens

    first = tokens(jnp.arange(8)).reshape(32, -1)
    assert len(np.unique(first, axis=0)) == 32
    assert len(np.unique(first.reshape(-1, 1), axis=0)) == 16
    again = tokens(jnp.arange(8), jax.random.fold_in(KEY, 1)).reshape(32, -1)
    assert not bool(jnp.any(jnp.all(again == first, -1)))
    equal = tokens(jnp.zeros(8, jnp.int32))
    chex.assert_trees_all_equal(equal, jnp.broadcast_to(equal[:1], equal.shape))


# Ends.


def scripted(*tokens, vocab_size=6):
    """A bandit that says exactly these tokens, and its parameters."""
    policy = fakes.bandit(1, len(tokens), vocab_size)
    logits = 100.0 * jax.nn.one_hot(jnp.array(tokens), vocab_size)[None]
    return {"policy": policy, "params": {"logits": logits}}


ONE = fakes.prompts(num_prompts=1)


def test_the_end_token_belongs_to_the_completion_and_nothing_after_it():
    says = scripted(1, 2, STOP, 4, 5)
    samples, old = draw(ONE, **says, num_samples=2, max_tokens=5)
    assert samples.tokens[0, 0].tolist() == [1, 2, STOP, 0, 0]
    assert samples.mask[0, 1].tolist() == [True, True, True, False, False]
    assert samples.finished.tolist() == [[True, True]]
    chex.assert_trees_all_equal(old.entropy[..., 3:], jnp.zeros((1, 2, 2)))


def test_a_completion_cut_at_the_last_token_is_not_finished():
    says = scripted(1, 2, 1, 4, STOP)
    samples, _ = draw(ONE, **says, num_samples=1, max_tokens=4)
    assert samples.mask.all() and not samples.finished.any()
    samples, _ = draw(ONE, **says, num_samples=1, max_tokens=5)
    assert samples.mask.all() and samples.finished.all()


def test_any_of_several_stop_tokens_ends():
    says = scripted(1, 5, STOP)
    options = {"num_samples": 1, "max_tokens": 3, "stop_tokens": (STOP, 5)}
    samples, _ = draw(ONE, **says, **options)
    assert samples.mask[0, 0].tolist() == [True, True, False]


def test_sampling_ends_when_every_row_has_ended():
    # 5 tokens said and 40 allowed: 4 calls of decode, not 39.
    says = scripted(1, 2, 1, 1, STOP, *[1] * 35)
    calls = []

    def decode(*args):
        jax.debug.callback(lambda: calls.append(1))
        return says["policy"].decode(*args)

    policy = says["policy"]._replace(decode=decode)
    samples, _ = draw(ONE, policy, says["params"], num_samples=2, max_tokens=40)
    jax.effects_barrier()
    assert int(samples.length.max()) == 5
    assert len(calls) == 4


# Frequencies.


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 4}, {"top_p": 0.8}],
    ids=["plain", "temperature_top_k", "top_p"],
)
def test_frequencies_follow_the_exact_probabilities(options):
    # Both tokens together, so that dependent draws show, too.
    temperature = 0.5 if "top_k" in options else 1.0
    policy = fakes.bandit(1, 2, 6, temperature)
    table = np.random.default_rng(0).normal(size=(1, 2, 6)).astype(np.float32)
    params = {"logits": jnp.asarray(table)}
    samples, _ = draw(
        ONE, policy, params, num_samples=4000, max_tokens=2, stop_tokens=(), **options
    )
    scaled = jnp.asarray(table[0]) / temperature
    kept, _ = truncate(scaled, options.get("top_k"), options.get("top_p"))
    p = np.asarray(jax.nn.softmax(kept), np.float64)
    expected = 4000 * np.outer(p[0], p[1])
    first, second = np.asarray(samples.tokens[0]).T
    seen = np.zeros((6, 6))
    np.add.at(seen, (first, second), 1)
    possible = expected > 0
    assert seen[~possible].sum() == 0
    assert (
        scipy.stats.chisquare(
            seen[possible], expected[possible] * 4000 / expected[possible].sum()
        ).pvalue
        > 1e-3
    )


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"num_samples": 0}, "num_samples"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"num_slots": 0}, "num_slots"),
    ],
)
def test_numbers_out_of_range_are_refused(options, name):
    with pytest.raises(ValueError, match=f"{name} must lie in"):
        draw(**options)


# Slots: samples take turns, and nobody can tell.


@pytest.mark.parametrize("num_slots", [1, 3, 8, 31, 32, 99])
def test_slots_change_no_sample(num_slots):
    # A slot that saw its predecessor's keys would speak differently.
    want, want_old = draw()
    got, got_old = draw(num_slots=num_slots)
    chex.assert_trees_all_equal(got.tokens, want.tokens)
    chex.assert_trees_all_equal(got.mask, want.mask)
    chex.assert_trees_all_equal(got.finished, want.finished)
    chex.assert_trees_all_close(got_old, want_old, atol=1e-5)


def on_a_mesh(num_slots):
    devices = mesh.make()
    with jax.set_mesh(devices):
        inputs = (
            mesh.replicate(PARAMS, devices),
            mesh.shard_prompts(PROMPTS, devices),
            KEY,
        )
        program = jitted(POLICY, num_slots=num_slots).lower(*inputs).compile()
        return jax.device_get(program(*inputs)), program.as_text()


def test_slots_on_a_mesh_change_no_sample_and_move_nothing():
    got, program = on_a_mesh(num_slots=16)
    assert_same(got, draw())
    # Devices agree on when to refill; keys and samples stay where they are.
    moves = re.findall(r"(?:all-gather|all-to-all|collective-permute)\S*\(", program)
    assert "all-reduce" in program and not moves


def test_slots_are_raised_to_a_multiple_of_the_devices():
    with jax.set_mesh(mesh.make()):
        twelve, sixteen = (draw(num_slots=n)[0].decode_steps for n in (12, 16))
        with pytest.raises(ValueError, match=r"a multiple of 8, .* 6"):
            draw(fakes.prompts(num_prompts=6))
    np.testing.assert_array_equal(twelve, sixteen)


def lognormal_ends(num_tokens, mean):
    """Parameters of a bandit whose samples have lognormal lengths, variation 1."""
    end = long_tail.hazard(num_tokens, mean)
    logits = np.full((32, num_tokens, 4), -1e9, np.float32)
    logits[..., STOP], logits[..., 1] = np.log(end), np.log1p(-end)
    return {"logits": jnp.asarray(logits)}


def test_slots_keep_at_work_where_lengths_differ():
    policy, params = fakes.bandit(32, 200, 4), lognormal_ends(200, mean=40)
    prompts, used, drawn = fakes.prompts(num_prompts=32), {}, {}
    for num_slots in (None, 32):
        samples, _ = draw(
            prompts,
            policy,
            params,
            num_samples=32,
            max_tokens=200,
            num_slots=num_slots,
        )
        tokens = jnp.sum(samples.length - 1)  # the first comes with the prompt
        used[num_slots] = float(tokens / jnp.sum(samples.decode_steps))
        drawn[num_slots] = samples.tokens
    chex.assert_trees_all_equal(drawn[None], drawn[32])
    length = np.sum(np.asarray(samples.mask), -1)
    assert 0.8 < length.std() / length.mean() < 1.1
    assert used[None] == pytest.approx((length.mean() - 1) / (length.max() - 1), 1e-5)
    assert used[None] < 0.25 and used[32] > 0.85


STORIES = pathlib.Path(__file__).parents[2].parent / "shared/models/stories260k"


@pytest.mark.slow
@pytest.mark.skipif(not STORIES.is_dir(), reason="no shared models")
def test_slots_keep_at_work_where_a_trained_model_ends_its_sentences():
    config, params = hugging_face.load(STORIES)
    policy, words = decoder_policy(config), tokenizer.load_tokenizer(STORIES)
    begins = ["Once upon a time", "Tim was", "One day, Lily", "The big dog"]
    problems = [data.Problem(begin, "any") for begin in begins]
    prompts, _ = data.encode_prompts(problems, words, 16)
    options = {
        "max_tokens": 64,
        "num_samples": 16,
        "stop_tokens": (words.convert_tokens_to_ids("."),),
    }
    samples = {
        n: draw(prompts, policy, params, num_slots=n, **options)[0] for n in (None, 8)
    }
    chex.assert_trees_all_equal(samples[None].tokens, samples[8].tokens)
    assert float(jnp.mean(samples[8].finished)) > 0.9
    useful = {
        n: float(jnp.sum(x.length - 1) / jnp.sum(x.decode_steps))
        for n, x in samples.items()
    }
    assert useful[None] < 0.45 and useful[8] > 0.8
