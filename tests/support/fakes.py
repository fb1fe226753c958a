"""Fakes: rollouts of made-up numbers and policies small enough to enumerate.

Numbers come from NumPy, so that no release of JAX changes what a test sees.
"""

import jax
import jax.numpy as jnp
import numpy as np

from rljax import numerics
from rljax.layout import over_tokens
from rljax.model import DecoderConfig, decoder_policy
from rljax.policy import Policy, against_reference
from rljax.types import Credit, Prompts, Rollout, Samples, TokenStats, Verdict

STATISTICS = ("old", "reference", "teacher", "current")


def prompts(num_prompts=4, num_tokens=5, vocab_size=16, seed=0) -> Prompts:
    """Prompts of mixed lengths, shuffled ids, and garbage beyond their lengths."""
    draw = np.random.default_rng(seed)
    return Prompts(
        tokens=jnp.asarray(
            draw.integers(0, vocab_size, (num_prompts, num_tokens)), jnp.int32
        ),
        length=jnp.asarray(draw.integers(1, num_tokens + 1, num_prompts), jnp.int32),
        id=jnp.asarray(draw.permutation(num_prompts), jnp.int32),
    )


def token_stats(shape, seed=0) -> TokenStats:
    """Log-probabilities in (-3, 0) and entropies in (0, 2), nats."""
    draw = np.random.default_rng(seed)
    return TokenStats(
        logp=jnp.asarray(-3 * draw.random(shape), jnp.float32),
        entropy=jnp.asarray(2 * draw.random(shape), jnp.float32),
    )


def rollout(
    num_prompts=3, num_samples=4, num_tokens=5, *, reward=None, length=None, seed=0
) -> Rollout:
    """A rollout with every statistic measured, all of them different.

    Args:
      reward: [P, G] or None for a mixture of 0 and 1.
      length: [P, G] tokens or None for lengths from 1 to `num_tokens`.
    """
    draw = np.random.default_rng(seed)
    shape = (num_prompts, num_samples)
    if reward is None:
        reward = draw.integers(0, 2, shape)
    if length is None:
        length = draw.integers(1, num_tokens + 1, shape)
    reward = jnp.asarray(reward, jnp.float32)
    full = (*shape, num_tokens)
    stats = {
        name: token_stats(full, seed=(seed, i)) for i, name in enumerate(STATISTICS)
    }
    return Rollout(
        prompts=prompts(num_prompts, seed=seed),
        samples=Samples(
            tokens=jnp.asarray(draw.integers(0, 16, full), jnp.int32),
            mask=jnp.asarray(np.arange(num_tokens) < np.asarray(length)[..., None]),
            source=jnp.zeros(shape, jnp.int32),
            finished=jnp.asarray(np.asarray(length) < num_tokens),
            behaviour=token_stats(full, seed=(seed, 9)),
        ),
        verdict=Verdict.binary(reward > 0).replace(reward=reward),
        **stats,
    )


def rewards(*groups) -> Rollout:
    """A rollout of one-token completions with these rewards, one list per prompt."""
    reward = np.asarray(groups, np.float32)
    return rollout(
        *reward.shape, num_tokens=1, reward=reward, length=np.ones(reward.shape)
    )


def solved(num_samples: int, *counts: int) -> Rollout:
    """`rewards` with the first `counts[i]` samples of prompt i right."""
    return rewards(*([1] * c + [0] * (num_samples - c) for c in counts))


def over_rows(fn, rollout: Rollout) -> Rollout:
    """Applies `fn` to every array but those of the prompts: all begin with [P, G]."""
    rows = {
        name: jax.tree.map(fn, getattr(rollout, name))
        for name in ("samples", "verdict", *STATISTICS)
    }
    return rollout.replace(**rows)


def pad_tokens(rollout: Rollout, by: int) -> Rollout:
    """The same rollout with `by` more token slots, all masked, their numbers NaN.

    The library promises never to read what lies outside the mask.
    """

    def pad(x):
        fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 0
        wide = [(0, 0), (0, 0), (0, by)] + [(0, 0)] * (x.ndim - 3)
        return jnp.pad(x, wide, constant_values=fill)

    return over_tokens(pad, rollout)


def bandit(
    num_prompts: int, num_tokens: int, vocab_size: int, temperature: float = 1.0
) -> Policy:
    """A policy whose parameters are its logits: f32[prompt id, position, V].

    Its distribution can be enumerated and its gradients written down; a step costs
    microseconds. It starts uniform.
    """

    def init(key):
        del key
        return {"logits": jnp.zeros((num_prompts, num_tokens, vocab_size))}

    def prefill(params, prompts):
        return params["logits"][prompts.id, 0] / temperature, prompts.id

    def init_cache(ids, num_samples, max_tokens):
        return ()

    def decode(params, tokens, t, ids, cache):
        logits = params["logits"][ids, t + 1][:, None] / temperature
        return jnp.broadcast_to(logits, (*tokens.shape, vocab_size)), cache

    def hidden(params, prompts, samples):
        P, G, T = samples.tokens.shape
        states = params["logits"][prompts.id, None, :T]
        return jnp.broadcast_to(states, (P, G, T, vocab_size))

    def measure(params, prompts, samples, reference=None):
        del reference
        states = hidden(params, prompts, samples)
        logp, entropy = numerics.logp_and_entropy(
            logits(params, states), samples.tokens
        )
        return TokenStats(logp=logp, entropy=entropy)

    def logits(params, states):
        return states / temperature

    return Policy(
        init=init,
        prefill=prefill,
        init_cache=init_cache,
        decode=decode,
        hidden=hidden,
        logits=logits,
        measure=measure,
    )


def bigram_measure(params, prompts, samples, reference=None) -> TokenStats:
    """Measures all that any algorithm reads; the policy sees the token before alone.

    All prompts share the parameters, a token costs two small matrix products, and it
    compiles faster than a decoder.
    """

    def hidden(params, prompts, samples):
        first = jnp.take_along_axis(prompts.tokens, prompts.length[:, None] - 1, 1)
        first = jnp.broadcast_to(first[:, None], (*samples.tokens.shape[:2], 1))
        before = jnp.concatenate([first, samples.tokens[..., :-1]], -1)
        return jnp.tanh(params["embedding"][before] @ params["mix"])

    # Nothing but scoring is asked of it.
    policy = Policy(
        **dict.fromkeys(Policy._fields),
    )._replace(
        hidden=hidden,
        logits=lambda params, h: h @ params["logits"],
        logits_params=lambda params: params,
    )
    now = against_reference(policy)(params, prompts, samples, reference)
    states = hidden(params, prompts, samples)
    value = states @ params["value"]
    drift = jnp.mean(jnp.square(states), -1)  # as if layers drifted
    return now.replace(extra={**now.extra, "value": value, "consistency": drift})


def bigram_params(vocab_size=16, d_model=32, seed=0):
    """Parameters of `bigram_measure`; their probabilities are far from uniform."""
    draw = np.random.default_rng(seed)
    shapes = {
        "embedding": (vocab_size, d_model),
        "mix": (d_model, d_model),
        "logits": (d_model, vocab_size),
        "value": (d_model,),
    }
    return {
        name: jnp.asarray(draw.normal(0, 0.5, shape), jnp.float32)
        for name, shape in shapes.items()
    }


def decoder(
    vocab_size=16, num_layers=1, max_logits=2**27, temperature=1.0, **sizes
) -> Policy:
    """A decoder that compiles in a second; its probabilities are far from uniform."""
    return decoder_policy(
        DecoderConfig(
            vocab_size=vocab_size,
            num_layers=num_layers,
            **{"d_model": 32, "d_ff": 48, "num_heads": 4, "num_kv_heads": 2} | sizes,
            head_dim=8,
            initializer_std=0.5,
        ),
        max_logits=max_logits,
        temperature=temperature,
    )


def credit_of(rollout: Rollout, advantage) -> Credit:
    """A starting credit with this advantage, broadcast to [P, G, 1]."""
    mask = rollout.samples.mask
    advantage = jnp.broadcast_to(
        jnp.asarray(advantage, jnp.float32)[..., None], (*mask.shape[:2], 1)
    )
    return Credit(
        advantage=advantage,
        weight=mask.astype(jnp.float32),
        member=jnp.ones(advantage.shape, bool),
    )


def stored_last(samples: Samples) -> dict[str, jax.Array]:
    """What prompts carry whose stored answers are the last of these samples."""
    ones = jnp.ones(samples.mask.shape[0])
    return {
        "answers": samples.tokens[:, -1:],
        "answers_mask": samples.mask[:, -1:],
        "answers_source": samples.source[:, -1:],
        "weight": ones,
        "hint_length": ones.astype(jnp.int32),
    }
