"""The sampler: decoding on the device, no host, early exit.

A prompt is prefilled once and shared by its G samples. Randomness is keyed by
(run key, step, prompt id, sample id, position): the same sample comes out whatever the
batch size, padding, order or sharding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check, mesh, numerics, slots
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
    num_slots: int | None = None,
    num_segments: int | None = None,
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
      num_slots: samples decoded at a time over the whole mesh; when one ends, a waiting
        one takes its place. For completions of very different lengths: a sixteenth of
        a batch's samples, say. None decodes all at once, until the longest ends.
      num_segments: programs by which the cache grows to T while all decode at once: a
        token costs what it reads. None takes one for each 16 tokens, at most 4.

    Returns:
      A pure function of parameters, prompts and the step's key. `samples.behaviour` is
      the distribution really drawn from, with `kept_mass` under it, `old` the policy
      itself: temperature 1, nothing truncated. At defaults they are equal.

    Raises:
      ValueError: if a number is outside its range.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.count("num_samples", num_samples)
    check.count("max_tokens", max_tokens)
    if not isinstance(stop_tokens, (tuple, list)):
        check.refuse("stop_tokens", "be a tuple of token ids", stop_tokens)
    for token in stop_tokens:
        check.count("stop_tokens", token, low=0, high=2**31 - 1)
    check.number("temperature", temperature, low=0)
    if top_k is not None:
        check.count("top_k", top_k)
    if top_p is not None:
        check.number("top_p", top_p, above=0, high=1)
    if num_slots is not None:
        check.count("num_slots", num_slots)
    if num_segments is None:
        num_segments = min(max(1, max_tokens // 16), 4)
    check.count("num_segments", num_segments, high=max_tokens)
    plain = temperature == 1 and top_k is None and top_p is None
    stops = jnp.asarray(stop_tokens, jnp.int32)

    def draw(logits, keys, t):  # f32[P, G, V], key[P, G], i32[P]
        drawn_from, kept = logits, jnp.ones(logits.shape[:-1], jnp.float32)
        if temperature == 0:
            token = jnp.argmax(logits, -1)
        else:
            drawn_from, kept = truncate(logits / temperature, top_k, top_p)
            noise = jax.vmap(jax.vmap(_gumbel, (0, None, None)), (0, 0, None))
            token = jnp.argmax(drawn_from + noise(keys, t, logits.shape[-1]), -1)
        token = token.astype(jnp.int32)
        row: dict[str, Any] = {"token": token, "mask": jnp.ones(token.shape, bool)}
        row["old"] = numerics.logp_and_entropy(logits, token)
        if temperature == 0:  # a point mass: log 1, no entropy, nothing truncated
            zero = jnp.zeros(token.shape, jnp.float32)
            row |= {"behaviour": (zero, zero), "kept": zero + 1}
        elif not plain:
            stats = numerics.logp_and_entropy(drawn_from, token)
            row |= {"behaviour": stats, "kept": kept}
        return row

    def sample(params, prompts: Prompts, key):
        P, G, T = prompts.tokens.shape[0], num_samples, max_tokens
        D = mesh.size()
        # Without refilling a prompt's samples stay together and read its keys once.
        W, B = (G, P // D) if num_slots is None else (1, min(num_slots, P * G) // D)
        _require_slots(P, D, B, num_slots)

        def lanes(x):  # [P, G, ...] -> [D, N, W, ...]
            return mesh.constrain(x.reshape(D, -1, W, *x.shape[2:]))

        keys = sample_keys(key, prompts.id, G)
        logits, prompt = policy.prefill(params, prompts)
        logits = jnp.broadcast_to(logits[:, None], (P, G, logits.shape[-1]))
        first = jax.tree.map(lanes, draw(logits, keys, jnp.zeros(P, jnp.int32)))
        log = jax.tree.map(
            lambda x: jnp.zeros((*x.shape[:2], T, W), x.dtype).at[:, :, 0].set(x), first
        )
        done = jnp.isin(first["token"], stops) | (T == 1)
        number = jnp.broadcast_to(jnp.arange(done.shape[1]), done.shape[:2])
        queue = slots.Items(
            number=number,
            t=jnp.zeros_like(number),
            token=first["token"],
            done=done,
            key=lanes(jax.random.key_data(keys)),
        )

        def choose(logits, items):
            row = draw(logits, jax.random.wrap_key_data(items.key), items.t)
            last = (items.t == T - 1)[:, None]
            return row["token"], jnp.isin(row["token"], stops) | last, row

        log, count = slots.decode(
            policy,
            policy.weights(params),
            queue,
            jax.tree.map(lambda x: x.reshape(D, -1, *x.shape[1:]), prompt),
            log,
            choose,
            num_slots=B,
            max_tokens=T,
            num_segments=num_segments,
        )
        log = jax.tree.map(lambda x: jnp.moveaxis(x, 3, 2).reshape(P, G, T), log)
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
            source=jnp.full((P, G), source, jnp.int32),
            finished=jnp.any(jnp.isin(log["token"], stops) & log["mask"], -1),
            behaviour=behaviour,
            decoded=jnp.full((P, G), D * B * W / (P * G), jnp.float32) * count,
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
    return jax.random.gumbel(jax.random.fold_in(key, t), (num,), jnp.float32)


def _require_slots(P, D, B, num_slots):
    if P % D or B < 1 or (num_slots is not None and num_slots % D):
        raise ValueError(
            f"the number of prompts and num_slots must be multiples of the mesh's {D}"
            f" devices, got {P} prompts and num_slots {num_slots}."
        )


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
