"""The sampler: decoding on the device, no host, early exit.

A prompt is prefilled once and shared by its G samples. Randomness is keyed by
(run key, step, prompt id, sample id, position): the same sample comes out whatever the
batch size, padding, order or sharding.

Tokens are drawn from the policy's own distribution, temperature included: that is what
the learner measures and trains. Top-k and top-p depart from it; see `behaviour`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check, keys, mesh, numerics
from rljax.policy.base import Policy
from rljax.rollout import slots
from rljax.types import Missing, Prompts, Samples, Source, TokenStats

Sampler = Callable[..., tuple[Samples, TokenStats | Missing]]


def sampler(
    policy: Policy,
    *,
    num_samples: int,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    top_k: int | None = None,
    top_p: float | None = None,
    num_slots: int | None = None,
    num_segments: int | None = None,
) -> Sampler:
    """Makes `sample(params, prompts, key) -> (samples, old)`.

    There is no temperature here: `decoder_policy(config, temperature=T)` has it, so
    that sampler and learner cannot differ in it. For evaluation at another one make
    another policy; it takes the same parameters.

    Args:
      policy: what to sample from.
      num_samples: G, completions per prompt.
      max_tokens: T, completion tokens at most, the end token included.
      stop_tokens: token ids that end a completion; they are part of it.
      top_k: draws among the k most likely tokens only (ties with the k-th are kept).
      top_p: after top-k, draws among the smallest set of the most likely tokens with at
        least this mass.
      num_slots: samples decoded at a time over the whole mesh; when one ends, a waiting
        one takes its place. For completions of very different lengths: a sixteenth of
        a batch's samples, say. None decodes all at once, until the longest ends.
      num_segments: number of cache sizes. Decoding starts with a small cache and goes
        on with larger ones, so early tokens read less; each size is compiled
        separately. None takes one per 16 tokens, at most 4.

    Returns:
      A pure function of parameters, prompts and the step's key. `samples.behaviour` is
      the distribution really drawn from, with `kept_mass` under it, `old` the policy
      itself, nothing truncated. At defaults they are equal.

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
    if top_k is not None:
        check.count("top_k", top_k)
    if top_p is not None:
        check.number("top_p", top_p, above=0, high=1)
    plain = top_k is None and top_p is None

    def draw(logits, own_keys, t):
        drawn_from, kept = truncate(logits, top_k, top_p)
        noise = jax.vmap(jax.vmap(_gumbel, (0, None, None)), (0, 0, None))
        token = jnp.argmax(drawn_from + noise(own_keys, t, logits.shape[-1]), -1)
        row = _row(logits, token)
        if not plain:
            stats = numerics.logp_and_entropy(drawn_from, row["token"])
            row |= {"behaviour": stats, "kept": kept}
        return row

    return _decoded(
        policy,
        draw,
        Source.OWN,
        num_samples,
        max_tokens,
        stop_tokens,
        num_slots,
        num_segments,
    )


def greedy(
    policy: Policy,
    *,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
    num_slots: int | None = None,
    num_segments: int | None = None,
) -> Sampler:
    """A sampler of one row per prompt: the most likely token each time.

    The limit of temperature 0. Such rows are for evaluation and for baselines beside
    sampled ones (ReMax): whatever is drawn without chance has no policy gradient.

    Args: as `sampler` takes them.

    Returns:
      A sampler of rows [P, 1, T] of `Source.GREEDY`; their behaviour is certain, their
      `old` the policy's own statistics.
    """

    def draw(logits, own_keys, t):
        del own_keys, t
        row = _row(logits, jnp.argmax(logits, -1))
        # A point mass: log 1, no entropy, nothing truncated.
        zero = jnp.zeros(row["token"].shape, jnp.float32)
        return row | {"behaviour": (zero, zero), "kept": zero + 1}

    return _decoded(
        policy, draw, Source.GREEDY, 1, max_tokens, stop_tokens, num_slots, num_segments
    )


def _row(logits, token) -> dict[str, Any]:
    """What is written down of each token."""
    token = token.astype(jnp.int32)
    old = numerics.logp_and_entropy(logits, token)
    return {"token": token, "mask": jnp.ones(token.shape, bool), "old": old}


def _decoded(
    policy, draw, source, num_samples, max_tokens, stop_tokens, num_slots, num_segments
) -> Sampler:
    """A sampler by `draw(logits f32[P, G, V], key[P, G], t i32[P]) -> row`."""
    check.number("max_tokens", max_tokens, low=1)
    if num_slots is not None:
        check.count("num_slots", num_slots)
    if num_segments is None:
        num_segments = min(max(1, max_tokens // 16), 4)
    check.count("num_segments", num_segments, high=max_tokens)
    stops = jnp.asarray(stop_tokens, jnp.int32)

    def sample(params, prompts: Prompts, key):
        P, G, T = prompts.tokens.shape[0], num_samples, max_tokens
        D = mesh.size()
        # Without refilling a prompt's samples stay together and read its keys once.
        W, B = (G, P // D) if num_slots is None else (1, min(num_slots, P * G) // D)
        _require_slots(P, D, B, num_slots)

        def lanes(x):  # [P, G, ...] -> [D, N, W, ...]
            return mesh.constrain(x.reshape(D, -1, W, *x.shape[2:]))

        own = sample_keys(key, prompts.id, G)
        logits, prompt = policy.prefill(params, prompts)
        check.stop_tokens(stop_tokens, logits.shape[-1])
        logits = jnp.broadcast_to(logits[:, None], (P, G, logits.shape[-1]))
        first = jax.tree.map(lanes, draw(logits, own, jnp.zeros(P, jnp.int32)))
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
            key=lanes(jax.random.key_data(own)),
        )

        def choose(logits, items):
            row = draw(logits, jax.random.wrap_key_data(items.key), items.t)
            last = (items.t == T - 1)[:, None]
            return row["token"], jnp.isin(row["token"], stops) | last, row

        log, count = slots.decode(
            policy,
            policy.decode_params(params),
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
        if "behaviour" in log:
            logp, entropy = log["behaviour"]
            extra = {"kept_mass": log["kept"]}
            behaviour = TokenStats(logp=logp, entropy=entropy, extra=extra)
        samples = Samples(
            tokens=log["token"],
            mask=log["mask"],
            source=jnp.full((P, G), source, jnp.int32),
            finished=jnp.any(jnp.isin(log["token"], stops) & log["mask"], -1),
            behaviour=behaviour,
            decode_steps=jnp.full((P, G), D * B * W / (P * G), jnp.float32) * count,
        )
        return samples, old

    return sample


def sample_keys(key: jax.Array, prompt_id: jax.Array, num_samples: int) -> jax.Array:
    """key[P, G]: of each sample, from the step's key; lacks the token's position."""

    def own(prompt, sample):
        return keys.stream(key, keys.Stream.SAMPLE, prompt, sample)

    rows = jax.vmap(jax.vmap(own, (None, 0)), (0, None))
    return rows(prompt_id, jnp.arange(num_samples))


def _gumbel(key, t, num):
    return jax.random.gumbel(keys.at(key, t), (num,), jnp.float32)


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
