"""A mixture of experts: each token is computed by the few that its router chooses.

No token is dropped: rows are sorted by expert, and the products are grouped
(`jax.lax.ragged_dot`). So a row's output does not depend on the other rows of a batch,
and sampler and learner agree. Padding is routed like any token.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import mesh
from rljax.model.config import DecoderConfig, Experts
from rljax.model.dense import Dense
from rljax.model.projection import gated


class Grouped(nn.Module):
    """A dense layer for each expert, of rows that are sorted by expert."""

    num: int
    features: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """[rows, features] of x [rows, width]; `sizes` i32[num]: rows per expert."""
        shape = (self.num, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)


class SharedExpert(nn.Module):
    """An MLP that computes every row, weighed by a gate of its own (Qwen2-MoE)."""

    config: DecoderConfig
    d_ff: int
    out_init: Callable

    def setup(self):
        dense = _dense(self.config)
        self.weigh = dense(1)
        self.gate, self.up = dense(self.d_ff), dense(self.d_ff)
        self.down = dense(self.config.d_model, kernel_init=self.out_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.sigmoid(self.weigh(x)) * gated(self, x, self.config.activation)


class Mixture(nn.Module):
    """sum_k weight_k expert_k(x), over the experts with the largest probabilities.

    The router's softmax goes over all experts, in float32. Its gradient comes through
    the weights of the chosen ones; the choice has none.
    """

    config: DecoderConfig
    experts: Experts
    out_init: Callable

    def setup(self):
        c, e = self.config, self.experts
        init = nn.initializers.normal(c.initializer_std)
        self.router = _dense(c)(e.num)
        self.gate = Grouped(e.num, e.d_ff, init)
        self.up = Grouped(e.num, e.d_ff, init)
        self.down = Grouped(e.num, c.d_model, self.out_init)
        if e.shared_d_ff is not None:
            self.shared = SharedExpert(c, e.shared_d_ff, self.out_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[rows, d_model] of x [rows, d_model]."""
        if mesh.size() == 1 or self.is_initializing():
            return self.of_rows(x)
        alone = self.clone(parent=None)

        def of_device(x):  # sorted over the mesh, rows would go everywhere
            return alone.apply(self.variables, x, method=Mixture.of_rows)

        return mesh.by_rows(of_device, x)

    def of_rows(self, x: jax.Array) -> jax.Array:
        """The same, of rows that are all on one device."""
        e = self.experts
        probability = nn.softmax(self.router(x).astype(jnp.float32), -1)
        weight, choice = jax.lax.top_k(probability, e.num_chosen)
        if e.normalised:
            weight = weight / jnp.sum(weight, -1, keepdims=True)
        order = jnp.argsort(choice.reshape(-1))
        sizes = jnp.bincount(choice.reshape(-1), length=e.num).astype(jnp.int32)
        rows = x[order // e.num_chosen]
        out = gated(self, rows, self.config.activation, groups=(sizes,))
        out = out[jnp.argsort(order)].reshape(*choice.shape, -1)
        out = jnp.einsum("rkd,rk->rd", out, weight.astype(out.dtype))
        return out if e.shared_d_ff is None else out + self.shared(x)


def _dense(c: DecoderConfig) -> Callable[..., Dense]:
    init = nn.initializers.normal(c.initializer_std)
    return functools.partial(Dense, dtype=c.dtype, use_bias=False, kernel_init=init)
