"""A decoder as a policy: which parameters and keys its methods take and give."""

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.model.transformer import (
    Cache,
    Decoder,
    DecoderConfig,
    Prompt,
    member,
    side_by_side,
)
from rljax.policy import score
from rljax.policy.base import Policy
from rljax.types import TokenStats


def decoder_policy(
    config: DecoderConfig,
    *,
    temperature: jax.typing.ArrayLike = 1.0,
    max_logits: int = 2**27,
) -> Policy:
    """The policy of a decoder: softmax(logits / temperature).

    Args:
      config: sizes.
      temperature: of the policy itself: samples, log-probabilities, entropies, KLs and
        values, for sampler and learner alike. So what is trained is what is sampled,
        and a policy trained at T is to be used at T. Above 0; may be traced.
      max_logits: float32 logits that scoring may hold at once, over the whole mesh;
        beyond it, tokens are scored in chunks and their logits recomputed backward.
    """
    check.kind("config", config, DecoderConfig, "DecoderConfig(vocab_size=64, ...)")
    check.count("max_logits", max_logits)
    known = not isinstance(temperature, jax.core.Tracer)
    if known and temperature == 0:
        raise ValueError(
            "temperature must be above 0, got 0: a policy without chance has no policy"
            " gradient; for the most likely tokens use rljax.rollout.sample.greedy."
        )
    check.number("temperature", temperature, above=0)
    plain = known and temperature == 1
    model = Decoder(config)

    def apply(params, method, *args):
        return model.apply({"params": params}, *args, method=method)

    def members(params):  # layers [L, ...] -> [N, ...] of each member
        M = config.num_members
        apart = [
            jax.tree.map(lambda p, m=m: p[m::M], params["layers"]) for m in range(M)
        ]
        return {**params, "layers": dict(zip(map(member, range(M)), apart))}

    def weights(params):
        def cast(path, p):  # as every product would
            return p if path[-1].key == "scale" else p.astype(config.dtype)

        params = members(jax.tree.map_with_path(cast, params))
        joined = {name: _joined(layer) for name, layer in params["layers"].items()}
        return {**params, "layers": joined}

    def init(key):
        return model.init(key)["params"]

    def prefill(params, prompts):
        hidden, keys = apply(
            members(params), Decoder.read_prompts, prompts.tokens, prompts.length
        )
        keys = jax.tree.map(side_by_side, keys)
        return logits(params, hidden), Prompt(keys, prompts.length)

    def start(prompt, num_samples, max_tokens):
        def empty(x):  # [P, N * H, S, D] -> [P, N * H * G, T - 1, D]
            P, heads, _, D = x.shape
            size = (P, heads * num_samples, max(max_tokens - 1, 1), D)
            return jnp.zeros(size, x.dtype)

        return Cache(jax.tree.map(empty, prompt.keys), jnp.int32(0))

    def decode(weights, tokens, t, prompt, cache):
        hidden, cache = apply(weights, Decoder.step, tokens, t, prompt, cache)
        P, G, _ = hidden.shape
        out = logits(weights, hidden.reshape(P * G, -1))
        return out.reshape(P, G, -1), cache

    def hidden(params, prompts, samples):
        tokens, mask, params = samples.tokens, samples.mask, members(params)
        first, keys = apply(
            params, Decoder.read_prompts, prompts.tokens, prompts.length
        )
        P, G, T = tokens.shape
        states = jnp.broadcast_to(first[:, None, None], (P, G, 1, first.shape[-1]))
        if T == 1:
            return states
        rest = apply(
            params,
            Decoder.read_completions,
            tokens[:, :, :-1],
            mask[:, :, :-1],
            prompts.length,
            prompts.tokens.shape[1],
            keys,
        )
        return jnp.concatenate([states, rest], 2)

    def logits(params, hidden):
        raw = apply(params, Decoder.logits, hidden)
        return raw if plain else raw / temperature

    def measure(params, prompts, samples, reference=None):
        del reference
        states = hidden(params, prompts, samples)
        tokens = numerics.readable_ids(samples.tokens, samples.mask, config.vocab_size)

        def stats(states, tokens):
            return numerics.logp_and_entropy(logits(params, states), tokens)

        num_chunks = -(-tokens.size * config.vocab_size // max_logits)
        logp, entropy = score.by_chunks(stats, num_chunks, states, tokens)
        return TokenStats(logp=logp, entropy=entropy)

    return Policy(init, prefill, start, decode, hidden, logits, measure, weights)


def _joined(layer):
    """A layer's parameters with those that `Block.project` reads together as one."""
    layer = dict(layer)
    for names in (("q", "k", "v"), ("gate", "up")):
        parts = [layer.pop(name) for name in names]
        layer["_".join(names)] = jax.tree.map(lambda *p: jnp.concatenate(p, -1), *parts)
    return layer
