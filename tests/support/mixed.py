"""Mixed groups by hand: rows given by their tokens' probabilities; and a task to learn.

What lies outside a row's mask is NaN, so that reading it shows.
"""

from typing import NamedTuple

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import numerics, program
from rljax.learn import update
from rljax.policy import Policy
from rljax.rollout import mixed
from rljax.rollout.sample import sampler
from rljax.types import Prompts, Rollout, Samples, Source, TokenStats, Verdict

OWN, DEMONSTRATION, TEACHER = Source.OWN, Source.DEMONSTRATION, Source.TEACHER


class Row(NamedTuple):
    """A completion: probabilities of its tokens now, before, and of the reference."""

    now: tuple[float, ...]
    reward: float = 1.0
    source: int = OWN
    old: tuple[float, ...] | None = None
    reference: tuple[float, ...] | None = None
    entropy: float = 1.0


def group(*groups, data=None) -> tuple[TokenStats, Rollout]:
    """(now, rollout) of groups of rows; `old` is `now` where it is not given."""
    rows = [row for rows in groups for row in rows]
    shape = (len(groups), len(groups[0]))
    T = max(len(row.now) for row in rows)

    def table(values):
        wide = [list(v) + [np.nan] * (T - len(v)) for v in values]
        return jnp.asarray(np.log(np.float32(wide)).reshape(*shape, T))

    def stats(values):
        entropy = jnp.asarray([r.entropy for r in rows], jnp.float32)
        entropy = jnp.broadcast_to(entropy.reshape(*shape, 1), (*shape, T))
        return TokenStats(logp=table(values), entropy=entropy)

    def column(name, dtype):
        return jnp.asarray([getattr(r, name) for r in rows], dtype).reshape(shape)

    reward = column("reward", jnp.float32)
    now = stats([r.now for r in rows])
    rollout = Rollout(
        prompts=Prompts(
            tokens=jnp.zeros((shape[0], 1), jnp.int32),
            length=jnp.ones(shape[0], jnp.int32),
            id=jnp.arange(shape[0], dtype=jnp.int32),
            data={"answers": jnp.zeros((shape[0], 1, T), jnp.int32)} | (data or {}),
        ),
        samples=Samples(
            tokens=jnp.zeros((*shape, T), jnp.int32),
            mask=~jnp.isnan(now.logp),
            source=column("source", jnp.int32),
            finished=jnp.ones(shape, bool),
        ),
        verdict=Verdict.binary(reward > 0).replace(reward=reward),
        old=stats([r.old if r.old is not None else r.now for r in rows]),
        reference=stats(
            [r.reference if r.reference is not None else r.now for r in rows]
        ),
    )
    return now, rollout


def step(algorithm, now, rollout, state=None):
    """(loss, coefficients -dL/dlogp, state, metrics) of one optimiser step."""

    def run(now, rollout, state):
        credits, state, first = algorithm.credit(rollout, state)
        credits, state, metrics = algorithm.weigh(
            credits, rollout.replace(current=now), state
        )
        loss, grads = jax.value_and_grad(algorithm.loss)(now, credits, rollout)
        coefficient = jnp.where(rollout.samples.mask, -grads.logp, 0.0)
        return loss, coefficient, state, first | metrics

    # As one program: op by op, each of a thousand small tests would compile dozens.
    return jax.jit(run)(now, rollout, algorithm.init() if state is None else state)


NUM_PROMPTS, NUM_TOKENS, VOCAB = 8, 3, 6


def task(num_steps: int, answers=("right", "wrong")) -> Prompts:
    """Prompts [K, P, ...] with a target each, and stored answers right or wrong."""
    draw = np.random.default_rng(0)
    target = draw.integers(0, VOCAB, (NUM_PROMPTS, NUM_TOKENS)).astype(np.int32)
    kinds = {"right": target, "wrong": (target + 1) % VOCAB}
    tokens = np.stack([kinds[a] for a in answers], 1)
    source = [DEMONSTRATION] + [TEACHER] * (len(answers) - 1)
    prompts = Prompts(
        tokens=np.zeros((NUM_PROMPTS, 1), np.int32),
        length=np.ones(NUM_PROMPTS, np.int32),
        id=np.arange(NUM_PROMPTS, dtype=np.int32),
        data={
            "target": target,
            "answers": tokens,
            "answers_mask": np.ones(tokens.shape, bool),
            "answers_source": np.tile(np.int32(source), (NUM_PROMPTS, 1)),
        },
    )
    return jax.tree.map(lambda x: np.stack([x] * num_steps), prompts)


def verify(prompts, samples) -> Verdict:
    target = prompts.data["target"][:, None]
    return Verdict.binary(jnp.all(samples.tokens == target, -1))


def bag(vocab_size: int, num_positions: int) -> Policy:
    """A policy that reads the last token, its position and the bag of all before.

    So it notices a token that is lost, doubled or moved, and compiles in no time.
    """

    def init(key):
        sizes = {"last": vocab_size, "place": num_positions, "bag": vocab_size}
        keys = jax.random.split(key, 3)
        return {
            name: jax.random.normal(k, (n, vocab_size))
            for k, (name, n) in zip(keys, sizes.items(), strict=True)
        }

    def look(params, last, place, bag):
        return params["last"][last] + params["place"][place] + bag

    def read(params, prompts):
        """Last token [P], next place [P], bag [P, V]."""
        there = jnp.arange(prompts.tokens.shape[1]) < prompts.length[:, None]
        held = jnp.where(there[..., None], params["bag"][prompts.tokens], 0)
        rows = jnp.arange(prompts.length.shape[0])
        last = prompts.tokens[rows, prompts.length - 1]
        return last, prompts.length, jnp.sum(held, 1)

    def prefill(params, prompts):
        last, place, bag = read(params, prompts)
        return look(params, last, place, bag), (place, bag)

    def init_cache(prompt, num_samples, max_tokens):
        _, bag = prompt
        return jnp.zeros((bag.shape[0], num_samples, vocab_size))

    def decode(params, tokens, t, prompt, own):
        place, bag = prompt
        own = jnp.where(t[:, None, None] == 0, 0, own) + params["bag"][tokens]
        place = (place + t + 1)[:, None]
        return look(params, tokens, place, bag[:, None] + own), own

    def hidden(params, prompts, samples):
        last, place, bag = read(params, prompts)
        P, G, T = samples.tokens.shape
        first = jnp.broadcast_to(last[:, None, None], (P, G, 1))
        fed = jnp.concatenate([first, samples.tokens[..., :-1]], 2)
        later = jnp.cumsum(params["bag"][samples.tokens], 2)[:, :, :-1]
        later = jnp.pad(later, ((0, 0), (0, 0), (1, 0), (0, 0)))
        place = (place[:, None] + jnp.arange(T))[:, None]
        return look(params, fed, place, bag[:, None, None] + later)

    def measure(params, prompts, samples, reference=None):
        del reference
        states = hidden(params, prompts, samples)
        logp, entropy = numerics.logp_and_entropy(states, samples.tokens)
        return TokenStats(logp=logp, entropy=entropy)

    return Policy(
        init=init,
        prefill=prefill,
        init_cache=init_cache,
        decode=decode,
        hidden=hidden,
        logits=lambda params, h: h,
        measure=measure,
    )


def sampling(policy, num_samples=4):
    return sampler(
        policy, num_samples=num_samples, max_tokens=NUM_TOKENS, stop_tokens=()
    )


def learned(policy, algorithm, sample, prompts, *, reference=None, **sizes):
    """(probability of the target per prompt f32[P], metrics) after a compiled run."""
    learner = update.learner(policy.measure, algorithm, optax.adam(0.2), **sizes)
    state = learner.init(policy.init(jax.random.key(0)), jax.random.key(1), reference)
    run = program.fused(program.actor(policy, sample), learner, verify)
    state, metrics = jax.jit(run)(state, prompts)
    return solving(policy, state.params, prompts), metrics


def solving(policy, params, prompts):
    """f32[P]: probability that a completion is the target."""
    one = jax.tree.map(lambda x: jnp.asarray(x[0]), prompts)
    target = one.data["target"][:, None]
    samples, _ = mixed.stored_answers(1)(None, one, None)
    logp = policy.measure(params, one, samples.replace(tokens=target)).logp
    return jnp.exp(jnp.sum(logp, -1))[:, 0]


PROBS = (0.9, 0.04, 0.6)


def demonstration(now=PROBS, **fields):
    return Row(now, source=DEMONSTRATION, **fields)


def per_token(loss_fn, now, rollout, advantage=1.0):
    credit = fakes.credit_of(rollout, advantage)
    return jax.jit(loss_fn)(now, credit, rollout)
