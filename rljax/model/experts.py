"""A mixture of experts: a router chooses a few experts for each token.

No token is dropped: rows are sorted by expert, and the products are grouped
(`jax.lax.ragged_dot`). So a row's output does not depend on the other rows of a batch,
and sampler and learner agree. Padding is routed like any token.

On a mesh, either the experts move to the rows or the rows to the experts. If
`Rules.dispatch` is empty, each device gathers all experts. Otherwise the devices along
these axes gather each other's rows, each applies its own experts to all of them, and
the sums are scattered back. The alternative, sending each row only to the devices of
its K experts, moves K copies of a row: more than gathering if there are fewer than K
devices.
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
    """A dense layer per expert, applied to rows that are sorted by expert."""

    num: int
    features: int
    kernel_init: Callable

    @nn.compact
    def __call__(self, x: jax.Array, sizes: jax.Array) -> jax.Array:
        """x [rows, width] -> [rows, features]; `sizes` i32[num]: rows per expert."""
        shape = (self.num, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        return jax.lax.ragged_dot(x, kernel.astype(x.dtype), sizes)


class SharedExpert(nn.Module):
    """An MLP for every row, multiplied by a sigmoid gate (Qwen2-MoE)."""

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
    """sum_k weight_k expert_k(x) over the K experts with the largest probabilities.

    The router's softmax is over all experts, in float32. Its gradient comes from the
    weights of the chosen experts; the choice itself has none. Routing replay replaces
    only the choice: the weights are always the router's own.
    """

    config: DecoderConfig
    experts: Experts
    out_init: Callable
    parts: int = 1  # devices over which the experts are divided

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
        """Applies the mixture to x [rows, d_model].

        Args:
          x: activations.
          given: [rows, K], experts that replace the router's choice, or None.

        Returns:
          The output [rows, d_model], and the router's own choice [rows, K], of dtype
          `Experts.dtype`.
        """
        if mesh.size() == 1 or self.is_initializing():
            return self.of_rows(x, given)
        axes = mesh.dispatch_axes(len(x))
        alone = self.clone(parent=None, parts=mesh.size(*axes) if axes else 1)

        # Each device sorts its own rows: a sort over the mesh would move all of them.
        def of_device(params, *rows):
            return alone.apply({"params": params}, *rows, axes, method=Mixture.of_rows)

        return mesh.by_rows(of_device, self.variables["params"], x, given)

    @property
    def num_here(self) -> int:
        """Experts on this device."""
        return self.experts.num // self.parts

    def of_rows(self, x: jax.Array, given: jax.Array | None, axes: tuple = ()):
        """`__call__` for the rows of one device.

        Args:
          x, given: as in `__call__`.
          axes: mesh axes over which the experts are divided; (): all are here.
        """
        e = self.experts
        logits = self.router(x).astype(jnp.float32)
        own = jax.lax.top_k(logits, e.num_chosen)[1]
        choice = own if given is None else given.astype(jnp.int32)
        # Normalised weights are a softmax over the logits of the chosen experts.
        # Dividing by the sum of their probabilities gives 0 / 0 if given experts have
        # probability 0.
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
        """[rows, d_model]: the weighted sum over the chosen experts of this device."""
        here = choice  # index among the experts here; num_here: on another device
        if axes:
            here = choice - jax.lax.axis_index(axes) * self.num_here
            here = jnp.where((here >= 0) & (here < self.num_here), here, self.num_here)
        order = jnp.argsort(here.reshape(-1))  # experts of other devices come last
        sizes = jnp.bincount(here.reshape(-1), length=self.num_here).astype(jnp.int32)
        rows = x[order // self.experts.num_chosen]
        mine = jnp.arange(len(rows))[:, None] < jnp.sum(sizes)
        # `ragged_dot` leaves rows undefined that belong to no group.
        rows = jnp.where(mine, rows, 0) if axes else rows
        out = gated(self, rows, self.config.activation, groups=(sizes,))
        out = jnp.where(mine, out, 0) if axes else out
        out = out[jnp.argsort(order)].reshape(*choice.shape, -1)
        return jnp.einsum("rkd,rk->rd", out, weight.astype(out.dtype))


def _dense(c: DecoderConfig) -> Callable[..., Dense]:
    init = nn.initializers.normal(c.initializer_std)
    return functools.partial(Dense, dtype=c.dtype, use_bias=False, kernel_init=init)
