"""One transformer layer: RMSNorm, grouped-query attention, gated MLP or experts."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from rljax.model import rotary
from rljax.model.attention import KeyValue, join_heads
from rljax.model.config import DecoderConfig
from rljax.model.dense import Dense
from rljax.model.experts import Mixture
from rljax.model.norm import Norm
from rljax.model.projection import gated, project


class Output(NamedTuple):
    """What a layer returns beside its activations.

    attended: the second output of its `attend_fn`.
    choice: [rows, K], the experts that its router prefers; None without experts.
    """

    attended: Any
    choice: jax.Array | None


class Block(nn.Module):
    """One layer on flat activations [P * G * T, d_model]."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        normal = nn.initializers.normal
        dense = functools.partial(
            Dense,
            dtype=c.dtype,
            use_bias=False,
            kernel_init=normal(c.initializer_std),
        )
        # Residual outputs start smaller by sqrt(2 L), as in GPT-2.
        out = normal(c.initializer_std / (2 * c.num_layers) ** 0.5)
        if c.norms != "after":
            self.norm_attention, self.norm_mlp = Norm(c), Norm(c)
        if c.norms != "before":
            self.norm_attention_out, self.norm_mlp_out = Norm(c), Norm(c)
        self.q = dense(c.num_heads * c.head_dim, use_bias=c.qkv_bias)
        self.k = dense(c.num_kv_heads * c.head_dim, use_bias=c.qkv_bias)
        self.v = dense(c.num_kv_heads * c.head_dim, use_bias=c.qkv_bias)
        if c.qk_norm is not None:
            self.q_norm, self.k_norm = Norm(c), Norm(c)
        self.o = dense(c.d_model, kernel_init=out)
        if c.experts is not None:
            self.experts = Mixture(c, c.experts, out)
        else:
            self.gate, self.up = dense(c.d_ff), dense(c.d_ff)
            self.down = dense(c.d_model, kernel_init=out)

    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        shape: tuple[int, int, int],
        rope: jax.Array,
        attend_fn: Callable[[jax.Array, KeyValue], tuple[jax.Array, Any]],
        given: jax.Array | None = None,
    ):
        """Applies the layer.

        Args:
          x: [P * G * T, d_model].
          layer: i32[], the layer's number; read by `rljax.model.probe` only.
          shape: (P, G, T), static.
          rope: rows of the rotary table, broadcastable to [P, H, G, T, 2, D].
          attend_fn: (q [P, H, G, R, T, D], own KeyValue) -> (out like q, output).
          given: [P * G * T, K], experts that replace the router's choice.

        Returns:
          The new x, and an `Output`.
        """
        del layer
        c = self.config
        before, after = c.norms != "after", c.norms != "before"
        h = self.norm_attention(x) if before else x
        h, output = self.attention(h, shape, rope, attend_fn)
        x = x + (self.norm_attention_out(h) if after else h)
        h = self.norm_mlp(x) if before else x
        choice = None
        if c.experts is None:
            h = gated(self, h, c.activation)
        else:
            h, choice = self.experts(h, given)
        x = x + (self.norm_mlp_out(h) if after else h)
        return x, Output(output, choice)

    def attention(self, h, shape, rope, attend_fn):
        """h [P * G * T, d_model] -> (the same shape, second output of `attend_fn`)."""
        c, (P, G, T) = self.config, shape

        def heads(y, num):  # [P*G*T, H*num*D] -> [P, H, G, num, T, D]
            y = y.reshape(P, G, T, c.num_kv_heads, num, c.head_dim)
            return y.transpose(0, 3, 1, 4, 2, 5)

        q, k, v = project(self, h, "q", "k", "v")
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = heads(q, c.num_heads // c.num_kv_heads)
        k, v = heads(k, 1)[:, :, :, 0], heads(v, 1)[:, :, :, 0]
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotary.rotate(q, rope[:, :, :, None]), rotary.rotate(k, rope)
        out, output = attend_fn(q, jax.tree.map(join_heads, KeyValue(k, v)))
        out = out.transpose(0, 2, 4, 1, 3, 5).reshape(h.shape[0], -1)
        return self.o(out), output
