"""One transformer layer: RMSNorm, grouped-query attention, SwiGLU."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rljax.model import dense, rotary
from rljax.model.attention import KeyValue, join_heads
from rljax.model.config import DecoderConfig

JOINED = (("q", "k", "v"), ("gate", "up"))
"""Dense layers that read the same input; `join_projections` makes each row one."""


class Block(nn.Module):
    """One layer on flat activations [P * G * T, d_model]."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        normal = nn.initializers.normal
        linear = functools.partial(
            dense.Dense,
            dtype=c.dtype,
            use_bias=False,
            kernel_init=normal(c.initializer_std),
        )
        # Residual outputs start smaller by sqrt(2 L), as in GPT-2.
        out = normal(c.initializer_std / (2 * c.num_layers) ** 0.5)
        norm = functools.partial(nn.RMSNorm, epsilon=c.norm_epsilon, dtype=c.dtype)
        self.norm_attention, self.norm_mlp = norm(), norm()
        self.q = linear(c.num_heads * c.head_dim, use_bias=c.qkv_bias)
        self.k = linear(c.num_kv_heads * c.head_dim, use_bias=c.qkv_bias)
        self.v = linear(c.num_kv_heads * c.head_dim, use_bias=c.qkv_bias)
        if c.qk_norm:
            self.q_norm, self.k_norm = norm(), norm()
        self.o = linear(c.d_model, kernel_init=out)
        self.gate, self.up = linear(c.d_ff), linear(c.d_ff)
        self.down = linear(c.d_model, kernel_init=out)

    def __call__(
        self,
        x: jax.Array,
        layer: jax.Array,
        shape: tuple[int, int, int],
        rope: jax.Array,
        attend_fn: Callable[[jax.Array, KeyValue], tuple[jax.Array, Any]],
    ):
        """Applies the layer.

        Args:
          x: [P * G * T, d_model].
          layer: i32[], its number; for `rljax.model.probe`, which looks in.
          shape: (P, G, T), static.
          rope: rows of the rotary table, broadcastable to [P, H, G, T, 2, D].
          attend_fn: (q [P, H, G, R, T, D], own KeyValue) -> (out like q, output).

        Returns:
          The new x, and the second output of `attend_fn`.
        """
        del layer
        c, (P, G, T) = self.config, shape

        def heads(y, num):  # [P*G*T, H*num*D] -> [P, H, G, num, T, D]
            y = y.reshape(P, G, T, c.num_kv_heads, num, c.head_dim)
            return y.transpose(0, 3, 1, 4, 2, 5)

        h = self.norm_attention(x)
        q, k, v = self.project(h, "q", "k", "v")
        q = heads(q, c.num_heads // c.num_kv_heads)
        k, v = heads(k, 1)[:, :, :, 0], heads(v, 1)[:, :, :, 0]
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotary.rotate(q, rope[:, :, :, None]), rotary.rotate(k, rope)
        own = jax.tree.map(join_heads, KeyValue(k, v))
        out, output = attend_fn(q, own)
        x = x + self.o(out.transpose(0, 2, 4, 1, 3, 5).reshape(x.shape[0], -1))
        h = self.norm_mlp(x)
        gate, up = self.project(h, "gate", "up")
        return x + self.down(nn.silu(gate) * up), output

    def project(self, h, *names):
        """Outputs of a row of `JOINED`; one product if the parameters are joined."""
        layers = [getattr(self, name) for name in names]
        if not self.has_variable("params", joined_name(names)):
            return [layer(h) for layer in layers]
        joined = self.get_variable("params", joined_name(names))
        out = dense.apply(h, joined, self.config.dtype)
        ends = np.cumsum([layer.features for layer in layers])[:-1]
        return jnp.split(out, ends, -1)


def joined_name(names) -> str:
    """The name of the parameters of a row of `JOINED` that were joined."""
    return "_".join(names)


def join_projections(params: dict[str, Any]) -> dict[str, Any]:
    """A layer's parameters with those of each row of `JOINED` as one.

    XLA:CPU: one wide product is faster than several; joining takes 6 to 9 % off
    sampling on one core.
    """
    params = dict(params)
    for names in JOINED:
        parts = [params.pop(name) for name in names]
        params[joined_name(names)] = jax.tree.map(
            lambda *p: jnp.concatenate(p, -1), *parts
        )
    return params
