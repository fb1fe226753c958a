"""A Llama-type decoder in flax.

RMSNorm, rotary positions, grouped-query attention, SwiGLU; with q/k/v biases it is
Qwen2. Laid out for speed: activations are flat [rows, width], so every projection is
one two-dimensional matrix product; a prompt is computed once per group, in the sampler
and in the training pass. The layers are one scan, so that deep models compile as fast
as shallow ones: `L` layers are `N` trips of `M` members, layer n M + m is member m of
trip n. What each layer has of its own (keys and values) is in a tuple, one per member:
where there is but one trip, no layer's part is ever cut out of a larger array.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rljax import check, numerics
from rljax.model import attention
from rljax.model.attention import KeyValue

_SIZES = (
    *("vocab_size", "num_layers", "d_model", "num_heads", "num_kv_heads", "head_dim"),
    "d_ff",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder; names follow the project's letters, not Hugging Face's.

    unroll: M, how many layers are compiled side by side; divides num_layers. All of
      them is the fastest to run, 1 compiles in a time that does not grow with depth.
      None takes all of up to 8 layers, and 1 of more.
    remat: whether the backward pass computes the inside of each layer again instead of
      keeping it: memory of the layers' inputs alone, for a third more arithmetic. For
      deep models, with unroll=1: of layers side by side XLA may still keep it.
    """

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
    unroll: int | None = None
    remat: bool = False

    def __post_init__(self):
        for name in _SIZES:
            check.count(name, vars(self)[name])
        for name in ("rope_theta", "norm_epsilon", "initializer_std"):
            check.number(name, vars(self)[name], above=0)
        if self.unroll is not None:
            check.count("unroll", self.unroll)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads}"
                f" and {self.num_kv_heads}; change one of them."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even, got {self.head_dim}; add or take 1."
            )
        if self.num_members < 1 or self.num_layers % self.num_members:
            raise ValueError(
                f"unroll must be a divisor of num_layers={self.num_layers}, got"
                f" {self.unroll}; 1 compiles fastest, None chooses."
            )

    @property
    def num_members(self) -> int:
        """M, layers in the body of the scan."""
        if self.unroll is not None:
            return self.unroll
        return self.num_layers if self.num_layers <= 8 else 1

    @property
    def num_trips(self) -> int:
        """N, how often the scan runs its body."""
        return self.num_layers // self.num_members


class Prompt(NamedTuple):
    """What decoding reads of prompts, computed once and shared by the group.

    keys: a `KeyValue` per member, [P, N * H, S, D]: the heads of its N layers lie side
      by side, so that a trip's are a slice and, of one trip, the array itself.
    length: i32[P] tokens.
    """

    keys: tuple[KeyValue, ...]
    length: jax.Array


class Cache(NamedTuple):
    """The completions' own keys: a ring, so that rows may begin at any time.

    keys: as a prompt's, [P, N * H * G, T - 1, D]; the last token is never fed.
    written: i32[] tokens fed so far, by any row.
    """

    keys: tuple[KeyValue, ...]
    written: jax.Array


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

    def __call__(self, x, layer, shape, rope, attend):
        """Applies the layer.

        Args:
          x: [P * G * T, d_model].
          layer: i32[], its number; for `rljax.model.probe`, which looks in.
          shape: (P, G, T), static.
          rope: rows of the rotary table, broadcastable to [P, H, G, T, 2, D].
          attend: (q [P, H, G, R, T, D], own KeyValue) -> (out like q, anything).

        Returns:
          The new x and what `attend` returned beside its output.
        """
        del layer
        c, (P, G, T) = self.config, shape
        h = self.norm_attention(x)

        def heads(y, num):  # [P*G*T, H*num*D] -> [P, H, G, num, T, D]
            y = y.reshape(P, G, T, c.num_kv_heads, num, c.head_dim)
            return y.transpose(0, 3, 1, 4, 2, 5)

        group = c.num_heads // c.num_kv_heads
        q, k, v = self.project(h, "q", "k", "v")
        q = attention.rotate(heads(q, group), rope[:, :, :, None])
        k = attention.rotate(heads(k, 1)[:, :, :, 0], rope)
        own = KeyValue(k, heads(v, 1)[:, :, :, 0])
        out, aside = attend(q, jax.tree.map(rows, own))
        x = x + self.o(out.transpose(0, 2, 4, 1, 3, 5).reshape(x.shape[0], -1))
        h = self.norm_mlp(x)
        gate, up = self.project(h, "gate", "up")
        return x + self.down(nn.silu(gate) * up), aside

    def project(self, h, *names):
        """Outputs of the dense layers of one input, one product if they are joined."""
        layers = [getattr(self, name) for name in names]
        if not self.has_variable("params", "_".join(names)):
            return [layer(h) for layer in layers]
        joined = self.get_variable("params", "_".join(names))
        out = h @ joined["kernel"] + joined.get("bias", 0)
        ends = np.cumsum([layer.features for layer in layers])[:-1]
        return jnp.split(out, ends, -1)


class Decoder(nn.Module):
    """Prompts, completions and single tokens through the same blocks."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(c.initializer_std)
        self.embed = nn.Embed(
            c.vocab_size, c.d_model, dtype=c.dtype, embedding_init=init
        )
        # Each parameter once for all layers, [L, ...], and each with a key of its own.
        self.layers = nn.vmap(
            Block,
            in_axes=None,
            axis_size=c.num_layers,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(c)
        self.norm = nn.RMSNorm(epsilon=c.norm_epsilon, dtype=c.dtype)
        if not c.tie_embeddings:
            self.head = nn.Dense(
                c.vocab_size, dtype=c.dtype, use_bias=False, kernel_init=init
            )

    def __call__(self):
        """Touches every parameter; only `init` uses it."""
        x = self.embed(jnp.zeros(1, jnp.int32))
        rope = self._rope((jnp.zeros((1, 1), jnp.int32), 1))
        self.layers(x, 0, (1, 1, 1), rope, lambda q, own: (q, None))
        return self.logits(self.norm(x))

    def _rope(
        self, positions
    ):  # [P or 1, T] within a static range -> [.., 1, 1, T, 2, D]
        c, (positions, size) = self.config, positions
        table = attention.rotary_table(size, c.head_dim, c.rope_theta)
        return table[positions][:, None, None]

    def _embed(self, tokens, read):
        """Flat rows; only where `read` holds must tokens be ids of the vocabulary."""
        ids = numerics.readable_ids(tokens, read, self.config.vocab_size)
        return self.embed(ids.reshape(-1))

    def logits(self, hidden):
        """f32[..., V] from normalised hidden states [..., d_model]."""
        if self.config.tie_embeddings:
            return self.embed.attend(hidden).astype(jnp.float32)
        return self.head(hidden).astype(jnp.float32)

    def walk(self, x, shape, rope, attend, given=None, fixed=None):
        """Takes activations through all layers.

        Args:
          x, shape, rope: as a `Block` takes them.
          attend: (q, own KeyValue, n, the layer's given, its member's fixed) -> (out
            like q, made), in trip n, an i32[].
          given: a tree [N, ...] per member, of which each layer gets its own part.
          fixed: a tree per member, which all its layers get.

        Returns:
          x, and what the layers made: a tree [N, ...] per member.
        """
        c, M = self.config, self.config.num_members
        block = Block(c, parent=None)
        given = (None,) * M if given is None else given
        fixed = (None,) * M if fixed is None else fixed

        @jax.jit  # so that layers side by side are traced and differentiated once
        def layer(x, n, m, params, given, fixed):
            def attend_here(q, own):
                return attend(q, own, n, given, fixed)

            number = n * M + m
            return block.apply({"params": params}, x, number, shape, rope, attend_here)

        if c.remat:
            layer = jax.checkpoint(layer)

        def trip(x, inputs):
            n, params, given = inputs
            made = []
            for m in range(M):
                x, out = layer(x, n, m, params[member(m)], given[m], fixed[m])
                made.append(out)
            return x, tuple(made)

        members = self.layers.variables["params"]
        return jax.lax.scan(trip, x, (jnp.arange(c.num_trips), members, given))

    def read_prompts(self, tokens, length):
        """Hidden state [P, d_model] after each prompt's last token, and its keys.

        The keys are a `KeyValue` [N, P, H, S, D] per member.
        """
        P, S = tokens.shape
        x = self._embed(tokens, jnp.arange(S) < length[:, None])
        rope = self._rope((jnp.arange(S)[None], S))

        def attend(q, own, n, given, fixed):
            del n, given, fixed
            return attention.attend_causally(q, own), own

        x, keys = self.walk(x, (P, 1, S), rope, attend)
        last = jnp.take_along_axis(
            x.reshape(P, S, -1), (length - 1)[:, None, None], axis=1
        )[:, 0]
        return self.norm(last), keys

    def read_completions(self, tokens, mask, length, num_prompt_tokens, prompt):
        """Hidden states [P, G, T, d_model] of tokens i32[P, G, T] after a prompt.

        Tokens outside the mask are read, too (tool output); what is no id there is 0.
        """
        P, G, T = tokens.shape
        S = num_prompt_tokens
        x = self._embed(tokens, mask)
        rope = self._rope((length[:, None] + jnp.arange(T), S + T))
        seen = jnp.arange(S) < length[:, None]

        def attend(q, own, n, prompt, fixed):
            del n, fixed
            return attention.attend_causally(q, own, prompt, seen), None

        x, _ = self.walk(x, (P, G, T), rope, attend, prompt)
        return self.norm(x).reshape(P, G, T, -1)

    def step(self, tokens, t, prompt: Prompt, cache: Cache):
        """Hidden states [P, G, d_model] after completion token t, and the cache."""
        P, G = tokens.shape
        S, U = prompt.keys[0].key.shape[2], cache.keys[0].key.shape[2]
        x = self.embed(tokens.reshape(-1))
        rope = self._rope(((prompt.length + t)[:, None], S + U))
        place = cache.written % U
        age = (place - jnp.arange(U)) % U  # how many tokens ago a key was written
        own_mask = (age <= t[:, None])[:, None, None]
        seen = (jnp.arange(S) < prompt.length[:, None])[:, None, None]

        def put(old, new):
            write = functools.partial(
                jax.lax.dynamic_update_slice_in_dim, start_index=place, axis=2
            )
            return jax.tree.map(write, old, new)

        def attend(q, new, n, given, fixed):
            del given

            def part(x):  # of trip n
                size = x.shape[1] // self.config.num_trips
                return jax.lax.dynamic_slice_in_dim(x, n * size, size, 1)

            shared, own = jax.tree.map(part, fixed)
            sets = (put(own, new), own_mask), (shared, seen)
            return attention.attend(q, *sets), new

        fixed = tuple(zip(prompt.keys, cache.keys, strict=True))
        x, new = self.walk(x, (P, G, 1), rope, attend, fixed=fixed)
        # Layers only read the caches, which are written here, all at once and in place:
        # of caches that are written within the scan, XLA makes copies at each layer.
        keys = put(cache.keys, jax.tree.map(side_by_side, new))
        hidden = self.norm(x).reshape(P, G, -1)
        return hidden, Cache(keys, cache.written + 1)


def rows(x):
    """[P, H, G, T, D] -> [P, H * G, T, D]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])


def side_by_side(x):
    """[N, P, H, ...] -> [P, N * H, ...]: the heads of all trips."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def member(m: int) -> str:
    """The name of a member's parameters."""
    return f"member_{m}"
