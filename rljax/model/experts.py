"""A mixture of experts: each token is computed by the few that its router chooses.

No token is dropped: rows are sorted by expert, and the products are grouped
(`jax.lax.ragged_dot`). So a row's output does not depend on the other rows of a batch,
and sampler and learner agree. Padding is routed like any token.

On a mesh, either experts come to the rows or rows to the experts. Experts are gathered
where `Rules.dispatch` is empty. Else the devices along these axes gather each other's
rows, each computes what its own experts add to them, and the sums are scattered back.
Sending each row only to its experts' devices would move K copies of it, which is more
as long as there are fewer devices than K.
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
    the weights of the chosen ones; the choice has none. So it is with given experts,
    too: routing replay replays the choice, the weights are the router's own.
    """

    config: DecoderConfig
    experts: Experts
    out_init: Callable
    parts: int = 1  # devices, of whose experts one has its own

    def setup(self):
        c, e = self.config, self.experts
        init = nn.initializers.normal(c.initializer_std)
        self.router = _dense(c)(e.num)
        self.gate = Grouped(self.num_here, e.d_ff, init)
        self.up = Grouped(self.num_here, e.d_ff, init)
        self.down = Grouped(self.num_here, c.d_model, self.out_init)
        if e.shared_d_ff is not None:
            self.shared = SharedExpert(c, e.shared_d_ff, self.out_init)

    def __call__(self, x: jax.Array, given: jax.Array | None = None):
        """Computes rows x [rows, d_model].

        Args:
          given: [rows, K], experts to take instead of the router's choice; None: none.

        Returns:
          [rows, d_model], and the router's own choice [rows, K] of `Experts.dtype`.
        """
        if mesh.size() == 1 or self.is_initializing():
            return self.of_rows(x, given)
        axes = mesh.dispatch_axes(len(x))
        alone = self.clone(parent=None, parts=mesh.size(*axes) if axes else 1)

        def of_device(params, *rows):  # sorted over the mesh, rows would go everywhere
            return alone.apply({"params": params}, *rows, axes, method=Mixture.of_rows)

        return mesh.by_rows(of_device, self.variables["params"], x, given)

    @property
    def num_here(self) -> int:
        return self.experts.num // self.parts

    def of_rows(self, x: jax.Array, given: jax.Array | None, axes: tuple = ()):
        """The same, of rows that are all on one device.

        Args:
          axes: mesh axes along which each device has a part of the experts.
        """
        e = self.experts
        logits = self.router(x).astype(jnp.float32)
        own = jax.lax.top_k(logits, e.num_chosen)[1]
        choice = own if given is None else given.astype(jnp.int32)
        # Normalised: a softmax over the chosen, which given ones cannot make 0 / 0.
        weight = logits if e.normalised else nn.softmax(logits, -1)
        weight = jnp.take_along_axis(weight, choice, -1)
        if e.normalised:
            weight = nn.softmax(weight, -1)
        if axes:
            gathered = jax.lax.all_gather((x, choice, weight), axes, tiled=True)
            out = self.chosen(*gathered, axes=axes)
            out = jax.lax.psum_scatter(out, axes, tiled=True)
        else:
            out = self.chosen(x, choice, weight)
        out = out if e.shared_d_ff is None else out + self.shared(x)
        return out, own.astype(e.dtype)

    def chosen(self, x, choice, weight, axes: tuple = ()) -> jax.Array:
        """[rows, d_model], the sum of the chosen experts that are on this device."""
        here = choice
        if axes:
            here = choice - jax.lax.axis_index(axes) * self.num_here
            here = jnp.where((here >= 0) & (here < self.num_here), here, self.num_here)
        order = jnp.argsort(here.reshape(-1))  # those of other devices come last
        sizes = jnp.bincount(here.reshape(-1), length=self.num_here).astype(jnp.int32)
        rows = x[order // self.experts.num_chosen]
        mine = jnp.arange(len(rows))[:, None] < jnp.sum(sizes)
        # What no group has is not computed, and may be anything.
        rows = jnp.where(mine, rows, 0) if axes else rows
        out = gated(self, rows, self.config.activation, groups=(sizes,))
        out = jnp.where(mine, out, 0) if axes else out
        out = out[jnp.argsort(order)].reshape(*choice.shape, -1)
        return jnp.einsum("rkd,rk->rd", out, weight.astype(out.dtype))


def _dense(c: DecoderConfig) -> Callable[..., Dense]:
    init = nn.initializers.normal(c.initializer_std)
    return functools.partial(Dense, dtype=c.dtype, use_bias=False, kernel_init=init)
