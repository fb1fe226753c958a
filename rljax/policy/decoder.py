"""A Llama-type decoder in flax and the policy it makes.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; with q/k/v biases it is
Qwen2. Laid out for speed: activations are flat [rows, width], so every projection is
one two-dimensional matrix product; a prompt is computed once per group, in the sampler
and in the training pass.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import numerics
from rljax.policy import attention, score
from rljax.policy.attention import KeyValue
from rljax.policy.base import Policy
from rljax.types import TokenStats


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder; names follow the project's letters, not Hugging Face's."""

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = False
    initializer_std: float = 0.02
    dtype: Any = jnp.float32  # of activations; parameters stay as they are stored

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads}"
                f" and {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}.")


class Cache(NamedTuple):
    """State of decoding; one `KeyValue` per layer in each tuple.

    prompt: [P, H, S, D], computed once, shared by the group.
    own: [P, H, G, T - 1, D], filled from the left; the last token is never fed.
    length: i32[P] prompt lengths.
    """

    prompt: tuple[KeyValue, ...]
    own: tuple[KeyValue, ...]
    length: jax.Array


class Block(nn.Module):
    """One transformer layer on flat activations [P * G * T, width]."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        normal = nn.initializers.normal
        dense = functools.partial(
            nn.Dense,
            dtype=c.dtype,
            use_bias=False,
            kernel_init=normal(c.initializer_std),
        )
        # Residual outputs start smaller by sqrt(2 L), as in GPT-2.
        out = normal(c.initializer_std / (2 * c.num_layers) ** 0.5)
        norm = functools.partial(nn.RMSNorm, epsilon=c.norm_epsilon, dtype=c.dtype)
        self.norm_attention, self.norm_mlp = norm(), norm()
        self.q = dense(c.num_heads * c.head_dim, use_bias=c.qkv_bias)
        self.k = dense(c.num_kv_heads * c.head_dim, use_bias=c.qkv_bias)
        self.v = dense(c.num_kv_heads * c.head_dim, use_bias=c.qkv_bias)
        self.o = dense(c.d_model, kernel_init=out)
        self.gate, self.up = dense(c.d_ff), dense(c.d_ff)
        self.down = dense(c.d_model, kernel_init=out)

    def __call__(self, x, shape, rope, attend):
        """Applies the layer.

        Args:
          x: [P * G * T, d_model].
          shape: (P, G, T), static.
          rope: rows of the rotary table, broadcastable to [P, H, G, T, 2, D].
          attend: (q [P, H, G, R, T, D], own KeyValue) -> (out like q, anything).

        Returns:
          The new x and what `attend` returned beside its output.
        """
        c, (P, G, T) = self.config, shape
        h = self.norm_attention(x)

        def heads(y, num):  # [P*G*T, H*num*D] -> [P, H, G, num, T, D]
            y = y.reshape(P, G, T, c.num_kv_heads, num, c.head_dim)
            return y.transpose(0, 3, 1, 4, 2, 5)

        group = c.num_heads // c.num_kv_heads
        q = attention.rotate(heads(self.q(h), group), rope[:, :, :, None])
        k = attention.rotate(heads(self.k(h), 1)[:, :, :, 0], rope)
        out, aside = attend(q, KeyValue(k, heads(self.v(h), 1)[:, :, :, 0]))
        x = x + self.o(out.transpose(0, 2, 4, 1, 3, 5).reshape(x.shape[0], -1))
        h = self.norm_mlp(x)
        return x + self.down(nn.silu(self.gate(h)) * self.up(h)), aside


class Decoder(nn.Module):
    """Prompts, completions and single tokens through the same blocks."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_std)
        self.embed = nn.Embed(
            c.vocab_size, c.d_model, dtype=c.dtype, embedding_init=init
        )
        self.layers = [Block(c) for _ in range(c.num_layers)]
        self.norm = nn.RMSNorm(epsilon=c.norm_epsilon, dtype=c.dtype)
        if not c.tie_embeddings:
            self.head = nn.Dense(
                c.vocab_size, dtype=c.dtype, use_bias=False, kernel_init=init
            )

    def __call__(self, tokens, length):
        """Touches every parameter; only `init` uses it."""
        return self.logits(self.read_prompts(tokens, length)[0])

    def _rope(
        self, positions
    ):  # [P or 1, T] within a static range -> [.., 1, 1, T, 2, D]
        c, (positions, size) = self.config, positions
        table = attention.rotary_table(size, c.head_dim, c.rope_theta)
        return table[positions][:, None, None]

    def logits(self, hidden):
        """f32[..., V] from normalised hidden states [..., d_model]."""
        if self.config.tie_embeddings:
            return self.embed.attend(hidden).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)

    def read_prompts(self, tokens, length):
        """Hidden state [P, d_model] after each prompt's last token, and its keys."""
        P, S = tokens.shape
        x = self.embed(tokens.reshape(-1))
        rope = self._rope((jnp.arange(S)[None], S))
        causal = jnp.tril(jnp.ones((S, S), bool))

        def attend(q, own):
            out = attention.attend(q, own, causal)
            return out, KeyValue(own.key[:, :, 0], own.value[:, :, 0])

        keys = []
        for layer in self.layers:
            x, kv = layer(x, (P, 1, S), rope, attend)
            keys.append(kv)
        last = jnp.take_along_axis(
            x.reshape(P, S, -1), (length - 1)[:, None, None], axis=1
        )[:, 0]
        return self.norm(last), tuple(keys)

    def read_completions(self, tokens, length, num_prompt_tokens, prompt):
        """Hidden states [P, G, T, d_model] of tokens i32[P, G, T] after a prompt."""
        P, G, T = tokens.shape
        S = num_prompt_tokens
        x = self.embed(tokens.reshape(-1))
        rope = self._rope((length[:, None] + jnp.arange(T), S + T))
        causal = jnp.tril(jnp.ones((T, T), bool))
        seen = jnp.arange(S) < length[:, None]
        for layer, kv in zip(self.layers, prompt, strict=True):

            def attend(q, own, kv=kv):
                return attention.attend(q, own, causal, kv, seen), None

            x, _ = layer(x, (P, G, T), rope, attend)
        return self.norm(x).reshape(P, G, T, -1)

    def step(self, tokens, t, cache: Cache):
        """Hidden states [P, G, d_model] after completion token t, and the cache."""
        P, G = tokens.shape
        S, U = cache.prompt[0].key.shape[2], cache.own[0].key.shape[3]
        x = self.embed(tokens.reshape(-1))
        rope = self._rope(((cache.length + t)[:, None], S + U))
        own_mask = (jnp.arange(U) <= t)[None]
        seen = jnp.arange(S) < cache.length[:, None]
        filled = []
        for layer, prompt, own in zip(
            self.layers, cache.prompt, cache.own, strict=True
        ):

            def attend(q, new, prompt=prompt, own=own):
                put = jax.tree.map(
                    lambda c, n: jax.lax.dynamic_update_slice_in_dim(c, n, t, 3),
                    own,
                    new,
                )
                return attention.attend(q, put, own_mask, prompt, seen), put

            x, put = layer(x, (P, G, 1), rope, attend)
            filled.append(put)
        hidden = self.norm(x).reshape(P, G, -1)
        return hidden, cache._replace(own=tuple(filled))


def decoder_policy(config: DecoderConfig, *, max_logits: int = 2**27) -> Policy:
    """The policy of a decoder.

    Args:
      config: sizes.
      max_logits: float32 logits that scoring may hold at once, over the whole mesh;
        beyond it, tokens are scored in chunks and their logits recomputed backward.
    """
    model = Decoder(config)

    def apply(params, method, *args):
        return model.apply({"params": params}, *args, method=method)

    def init(key):
        one = jnp.ones((1, 1), jnp.int32)
        return model.init(key, one, one[0])["params"]

    def prefill(params, prompts, num_samples, max_tokens):
        hidden, keys = apply(
            params, Decoder.read_prompts, prompts.tokens, prompts.length
        )

        def empty(x):  # [P, H, S, D] -> [P, H, G, T - 1, D]
            P, H, _, D = x.shape
            return jnp.zeros((P, H, num_samples, max(max_tokens - 1, 1), D), x.dtype)

        cache = Cache(keys, jax.tree.map(empty, keys), prompts.length)
        return logits(params, hidden), cache

    def decode(params, tokens, t, cache):
        hidden, cache = apply(params, Decoder.step, tokens, t, cache)
        P, G, _ = hidden.shape
        out = logits(params, hidden.reshape(P * G, -1))
        return out.reshape(P, G, -1), cache

    def hidden(params, prompts, samples):
        tokens = samples.tokens
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
            prompts.length,
            prompts.tokens.shape[1],
            keys,
        )
        return jnp.concatenate([states, rest], 2)

    def logits(params, hidden):
        return apply(params, Decoder.logits, hidden)

    def measure(params, prompts, samples):
        states = hidden(params, prompts, samples)
        tokens = samples.tokens

        def stats(states, tokens):
            return numerics.logp_and_entropy(logits(params, states), tokens)

        num_chunks = -(-tokens.size * config.vocab_size // max_logits)
        logp, entropy = score.by_chunks(stats, num_chunks, states, tokens)
        return TokenStats(logp=logp, entropy=entropy)

    return Policy(init, prefill, decode, hidden, logits, measure)
