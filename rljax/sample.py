"""The sampler: one `while_loop` on the device, no host, early exit.

A prompt is prefilled once and shared by its G samples. Randomness is keyed by
(run key, step, prompt id, sample id, position): the same sample comes out whatever the
batch size, padding, order or sharding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.policy.base import Policy
from rljax.types import Missing, Prompts, Samples, Source, TokenStats

Sampler = Callable[..., tuple[Samples, TokenStats | Missing]]


def sampler(
    policy: Policy,
    *,
    num_samples: int,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Sampler:
    """Makes `sample(params, prompts, key) -> (samples, old)`.

    Args:
      policy: what to sample from.
      num_samples: G, completions per prompt.
      max_tokens: T, completion tokens at most, the end token included.
      stop_tokens: token ids that end a completion; they are part of it.
      temperature: divides the logits; 0 takes the most likely token.
      top_k: draws among the k most likely tokens only (ties with the k-th are kept).
      top_p: after top-k, draws among the smallest set of the most likely tokens with at
        least this mass.

    Returns:
      A pure function of parameters, prompts and the step's key. `samples.behaviour` is
      the distribution really drawn from, with `kept_mass` under it, `old` the policy
      itself: temperature 1, nothing truncated. At defaults they are equal.

    Raises:
      ValueError: if a number is outside its range.
    """
    check.number("num_samples", num_samples, low=1)
    check.number("max_tokens", max_tokens, low=1)
    check.number("temperature", temperature, low=0)
    if top_k is not None:
        check.number("top_k", top_k, low=1)
    if top_p is not None:
        check.number("top_p", top_p, above=0, high=1)
    plain = temperature == 1 and top_k is None and top_p is None
    stops = jnp.asarray(stop_tokens, jnp.int32)

    def draw(logits, keys, t):  # f32[P, G, V], key[P, G]
        drawn_from, kept = logits, jnp.ones(logits.shape[:-1])
        if temperature == 0:
            token = jnp.argmax(logits, -1)
        else:
            drawn_from, kept = truncate(logits / temperature, top_k, top_p)
            noise = jax.vmap(jax.vmap(lambda k: _gumbel(k, t, logits.shape[-1])))(keys)
            token = jnp.argmax(drawn_from + noise, -1)
        token = token.astype(jnp.int32)
        out = {"old": numerics.logp_and_entropy(logits, token)}
        if temperature == 0:  # a point mass: log 1, no entropy, nothing truncated
            zero = jnp.zeros(token.shape, jnp.float32)
            out |= {"behaviour": (zero, zero), "kept": zero + 1}
        elif not plain:
            stats = numerics.logp_and_entropy(drawn_from, token)
            out |= {"behaviour": stats, "kept": kept}
        return token, out

    def sample(params, prompts: Prompts, key):
        P = prompts.tokens.shape[0]
        keys = sample_keys(key, prompts.id, num_samples)
        logits, cache = policy.prefill(params, prompts, num_samples, max_tokens)
        logits = jnp.broadcast_to(logits[:, None], (P, num_samples, logits.shape[-1]))

        def record(log, t, token, done, stats):
            row = {"token": token, "mask": ~done, **stats}
            row = jax.tree.map(lambda x: jnp.where(done, jnp.zeros_like(x), x), row)
            log = jax.tree.map(lambda buffer, x: buffer.at[t].set(x), log, row)
            return log, done | jnp.isin(token, stops)

        # Buffers are [T, P, G]: one contiguous write per token.
        token, stats = draw(logits, keys, 0)
        done = jnp.zeros(token.shape, bool)
        row = {"token": token, "mask": done, **stats}
        log = jax.tree.map(lambda x: jnp.zeros((max_tokens, *x.shape), x.dtype), row)
        log, done = record(log, 0, token, done, stats)

        def advance(carry):
            t, token, done, cache, log = carry
            logits, cache = policy.decode(params, token, t - 1, cache)
            token, stats = draw(logits, keys, t)
            log, done = record(log, t, token, done, stats)
            return t + 1, token, done, cache, log

        carry = (jnp.int32(1), token, done, cache, log)
        _, _, done, _, log = jax.lax.while_loop(
            lambda c: (c[0] < max_tokens) & ~jnp.all(c[2]), advance, carry
        )
        log = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 2), log)
        old = TokenStats(logp=log["old"][0], entropy=log["old"][1])
        behaviour = old.replace(extra={"kept_mass": log["mask"].astype(jnp.float32)})
        if not plain:
            logp, entropy = log["behaviour"]
            extra = {"kept_mass": log["kept"]}
            behaviour = TokenStats(logp=logp, entropy=entropy, extra=extra)
        source = Source.GREEDY if temperature == 0 else Source.OWN
        samples = Samples(
            tokens=log["token"],
            mask=log["mask"],
            source=jnp.full(done.shape, source, jnp.int32),
            finished=done,
            behaviour=behaviour,
        )
        return samples, old

    return sample


def sample_keys(key: jax.Array, prompt_id: jax.Array, num_samples: int) -> jax.Array:
    """key[P, G]: the key of each sample, from the step's key and identities alone."""
    prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_id)
    sample = jnp.arange(num_samples)
    return jax.vmap(lambda k: jax.vmap(lambda g: jax.random.fold_in(k, g))(sample))(
        prompt
    )


def _gumbel(key, t, num):
    return jax.random.gumbel(jax.random.fold_in(key, t), (num,))


def truncate(logits: jax.Array, top_k: int | None, top_p: float | None):
    """Logits with -inf outside top-k and then top-p, and the mass that is left.

    Args:
      logits: f32[..., V], after temperature.

    Returns:
      Truncated logits f32[..., V] and the kept mass f32[...], a fraction.
    """
    out = logits
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = jax.lax.top_k(out, top_k)[0][..., -1:]
        out = jnp.where(out >= threshold, out, -jnp.inf)
    if top_p is not None and top_p < 1:
        ordered = jnp.sort(out, -1, descending=True)
        p = jax.nn.softmax(ordered, -1)
        # A token stays if the mass before it is below top_p: the first always does.
        stays = jnp.cumsum(p, -1) - p < top_p
        threshold = jnp.min(jnp.where(stays, ordered, jnp.inf), -1, keepdims=True)
        out = jnp.where(out >= threshold, out, -jnp.inf)
    kept = jnp.sum(jnp.where(jnp.isneginf(out), 0.0, jax.nn.softmax(logits, -1)), -1)
    return out, kept
