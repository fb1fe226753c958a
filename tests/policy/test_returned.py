"""What samplers and measure functions return is checked where P = G = T, too.

There an array that lacks an axis broadcasts without a word: log-probabilities of whole
rows [P, G] are taken for those of tokens [G, T].
"""

import fakes
import jax
import jax.numpy as jnp
import optax
import pytest

from rljax import algorithms, decoupled, program
from rljax.evaluate import ask
from rljax.learn import update
from rljax.policy import returned
from rljax.rollout.sample import sampler
from rljax.types import Missing, Verdict

N, V = 4, 6
POLICY = fakes.bandit(N, N, V)
SAMPLE = sampler(POLICY, num_samples=N, max_tokens=N, stop_tokens=(0,))
PROMPTS = fakes.prompts(N, vocab_size=V)


def right(prompts, samples):
    return Verdict.binary(samples.tokens[..., 0] == 1)


def state(reference=None):
    learner = update.learner(POLICY.measure, algorithms.grpo(), optax.sgd(1.0))
    return learner.init(POLICY.init(None), jax.random.key(0), reference)


def act(sample=SAMPLE, *, policy=POLICY, reference=None, **more):
    made = program.actor(policy, sample, **more)
    return jax.eval_shape(made, state(reference), PROMPTS)


def spoilt(fn, change):
    """`fn`, with what it returns changed: a slip of whoever wrote it."""
    return lambda *args: change(fn(*args))


def of_rows(stats):  # the log-probability of a whole row
    return stats.replace(logp=jnp.sum(stats.logp, -1))


STATISTICS = {
    "an axis lost": (of_rows, r"logp float32\[P, G, T\] = \[4, 4, 4\], got float32\[4"),
    "a token too few": (
        lambda s: s.replace(entropy=s.entropy[..., 1:]),
        r"entropy float32\[P, G, T\] .* got float32\[4, 4, 3\]",
    ),
    "another dtype": (
        lambda s: s.replace(logp=s.logp.astype(jnp.bfloat16)),
        "got bfloat16",
    ),
    "no statistics": (lambda s: s.logp, "TokenStats, got"),
    "None": (lambda s: s.replace(logp=None), "logp .* got NoneType"),
    "an extra of rows": (
        lambda s: s.replace(extra={"value": jnp.ones((N, N))}),
        r"extra\['value'\] that begins with \[P, G, T\] .* got float32\[4, 4\]",
    ),
    "a row's extra of prompts": (
        lambda s: s.replace(row_extra={"kind": jnp.ones(N)}),
        r"row_extra\['kind'\] that begins with \[P, G\] .* got float32\[4\]",
    ),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_checked_whoever_measured_them(name):
    change, told = STATISTICS[name]
    measure = spoilt(POLICY.measure, change)
    with pytest.raises(ValueError, match=f"measure_old must return {told}"):
        act(measure_old=measure)
    with pytest.raises(ValueError, match=f"the teacher must return {told}"):
        act(teacher=lambda s, p, x: measure(s.params, p, x))
    with pytest.raises(ValueError, match=f"the policy's measure must return {told}"):
        act(policy=POLICY._replace(measure=measure), reference=POLICY.init(None))
    learner = update.learner(measure, algorithms.grpo(), optax.sgd(1.0))
    rows = fakes.rollout(N, N, N)
    with pytest.raises(ValueError, match=f"the learner's measure must return {told}"):
        jax.eval_shape(learner.learn, state(), rows)
    ahead = decoupled.Ahead(0, measure_old=measure)
    run = decoupled.loop(
        program.actor(POLICY, SAMPLE),
        update.learner(POLICY.measure, algorithms.grpo(), optax.sgd(1.0)),
        right,
        ahead,
        in_graph=True,
    )
    batch = jax.tree.map(lambda x: x[None], PROMPTS)
    with pytest.raises(ValueError, match=f"measure_old must return {told}"):
        jax.eval_shape(run, state().replace(ahead=()), batch)


SAMPLES = {
    "tokens without the group": (
        lambda s, old: (s.replace(tokens=s.tokens[:, 0]), old),
        r"tokens \[P, G, T\] of the P = 4 prompts, got int32\[4, 4\]",
    ),
    "fewer prompts": (
        lambda s, old: (jax.tree.map(lambda x: x[1:], s), old),
        r"tokens \[P, G, T\] of the P = 4 prompts, got int32\[3, 4, 4\]",
    ),
    "a mask of rows": (
        lambda s, old: (s.replace(mask=s.finished), old),
        r"mask bool\[P, G, T\] = \[4, 4, 4\], got bool\[4, 4\]",
    ),
    "a mask of numbers": (
        lambda s, old: (s.replace(mask=1.0 * s.mask), old),
        r"mask bool.* got float32\[4, 4, 4\]",
    ),
    "one source per prompt": (
        lambda s, old: (s.replace(source=s.source[:, 0]), old),
        r"source integer\[P, G\] = \[4, 4\], got int32\[4\]",
    ),
    "finished of tokens": (
        lambda s, old: (s.replace(finished=s.mask), old),
        r"finished bool\[P, G\] = \[4, 4\], got bool\[4, 4, 4\]",
    ),
    "one count of steps": (
        lambda s, old: (s.replace(decode_steps=jnp.float32(4)), old),
        r"decode_steps float32\[P, G\] = \[4, 4\], got float32\[\]",
    ),
    "behaviour of rows": (
        lambda s, old: (s.replace(behaviour=of_rows(s.behaviour)), old),
        r"logp float32\[P, G, T\] .*got float32\[4, 4\]",
    ),
    "`old` of rows": (
        lambda s, old: (s, of_rows(old)),
        r"logp float32\[P, G, T\] .*got float32\[4, 4\]",
    ),
    "samples alone": (lambda s, old: s, r"\(samples, old\), got Samples"),
    "tokens alone": (lambda s, old: (s.tokens, old), r"Samples, got int32\[4, 4, 4\]"),
}


def asked(sample):
    """Held-out problems are asked by the same samplers."""
    return jax.eval_shape(ask.ask(sample, right), POLICY.init(None), PROMPTS)


@pytest.mark.parametrize("call", [act, asked])
@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_checked_wherever_a_sampler_is_called(name, call):
    change, told = SAMPLES[name]
    sample = spoilt(SAMPLE, lambda result: change(*result))
    with pytest.raises(ValueError, match=rf"the sampler\b.* must return {told}"):
        call(sample)


def test_what_was_not_measured_need_not_be_there():
    old = Missing("old", "measure it")

    def bare(params, prompts, key):
        samples, _ = SAMPLE(params, prompts, key)
        return samples.without("behaviour", "decode_steps"), old

    assert act(bare).old == old
    measured = spoilt(POLICY.measure, lambda s: s.without("entropy"))
    assert act(bare, measure_old=measured).old.logp.shape == (N, N, N)


def test_the_check_leaves_nothing_in_the_program():
    stats = fakes.token_stats((N, N, N))
    rows = fakes.rollout(N, N, N)

    def checked(stats):
        return returned.statistics(stats, rows.samples, "it").logp

    assert jax.make_jaxpr(checked)(stats).eqns == []
