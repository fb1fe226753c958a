"""Order statistics under a mask: quantiles, and the largest or smallest entries.

Shapes are static: entries outside the mask sort to the end, as +inf.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


def quantile(values: jax.Array, mask: jax.Array, q: ArrayLike) -> jax.Array:
    """Quantile of the masked entries along the last axis, linearly interpolated.

    Args:
      values, mask: [..., N]; values outside the mask may be anything, even NaN.
      q: a fraction in [0, 1].

    Returns:
      f32[..., 1]; 0 where the mask is empty.
    """
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf), -1)
    count = jnp.sum(mask, -1, keepdims=True, dtype=jnp.int32)
    last = jnp.maximum(count - 1, 0)
    position = q * last.astype(jnp.float32)
    index = jnp.floor(position).astype(jnp.int32)
    low = jnp.take_along_axis(ordered, index, -1)
    high = jnp.take_along_axis(ordered, jnp.minimum(index + 1, last), -1)
    value = low + (position - index.astype(jnp.float32)) * (high - low)
    return jnp.where(count > 0, value, 0.0)


def quantile_of_all(values: jax.Array, mask: jax.Array, q: ArrayLike):
    """f32[]: the quantile of all masked entries of an array of any shape."""
    return quantile(values.ravel(), mask.ravel(), q)[0]


def smallest(values: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
    """bool, like `values`: the `count` smallest masked entries of the whole array.

    Exactly `count` are chosen, or all if there are fewer. Ties go to the first entries.
    """
    order = jnp.argsort(jnp.where(mask, values, jnp.inf).ravel())
    rank = jnp.argsort(order).reshape(values.shape)
    return mask & (rank < jnp.asarray(count).astype(jnp.int32))


def largest(values: jax.Array, mask: jax.Array, count: jax.Array) -> jax.Array:
    """bool, like `values`: the `count` largest masked entries of the whole array."""
    return smallest(-values, mask, count)


def share(mask: jax.Array, fraction: ArrayLike) -> jax.Array:
    """f32[]: `fraction` times the number of masked entries, to be floored or ceiled.

    A product within float32 rounding of an integer becomes that integer: 0.3 of 10 is
    3.
    """
    exact = fraction * jnp.sum(mask, dtype=jnp.float32)
    whole = jnp.round(exact)
    return jnp.where(jnp.abs(exact - whole) <= 3e-7 * whole, whole, exact)
