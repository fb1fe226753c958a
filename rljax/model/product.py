"""Matrix products with weights; narrow dtypes are accumulated in float32.

"Narrow" means less than 4 bytes: bfloat16 and float16. XLA:CPU uses the matrix units
for bfloat16 only if the result is float32 and both factors are laid out in the order in
which they are read. Otherwise it first converts both to float32, which is slower: 220
in place of 850 GFLOP/s for the gradient of a weight [576, 1536] over 2560 rows, on two
cores with AMX.
"""

import functools

import jax
import jax.numpy as jnp


def dense(x: jax.Array, weight: jax.Array, dimension_numbers=None, precision=None):
    """x [..., D] times weight [D, V], in x's dtype; the `dot_general` of `nn.Dense`."""
    del dimension_numbers  # those of Dense are always the same
    if not _narrow(x):
        dims = (((x.ndim - 1,), (0,)), ((), ()))
        return jax.lax.dot_general(x, weight, dims, precision=precision)
    return _product(x, weight, 0, x.dtype)


def logits(hidden: jax.Array, weight: jax.Array, axis: int) -> jax.Array:
    """Logits f32[..., V] of hidden states [..., D].

    Args:
      hidden: [..., D].
      weight: [D, V] with axis 0, or [V, D] with axis 1, of hidden's dtype.
      axis: the weight's axis of size D.
    """
    if not _narrow(hidden):
        return jnp.dot(hidden, weight if axis == 0 else weight.T)
    return _product(hidden, weight, axis, jnp.dtype(jnp.float32))


def _narrow(x: jax.Array) -> bool:
    return x.dtype.itemsize < 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x, weight, axis, dtype):
    return _dot(x, weight, x.ndim - 1, axis).astype(dtype)


def _forward(x, weight, axis, dtype):
    return _product(x, weight, axis, dtype), (x, weight)


def _backward(axis, dtype, saved, grad):
    """Casts the gradient to x's dtype, so that both of its products stay narrow.

    On a mesh the devices' parts of a weight's gradient are summed in float32. In the
    weight's dtype they would take half the bytes, 0.4 of 167 s in a step of 8B on 16
    v5p chips by the links' rate, and be rounded once per device.
    """
    del dtype
    x, weight = saved
    grad = grad.astype(x.dtype)
    rows, flat = (y.reshape(-1, y.shape[-1]) for y in (x, grad))
    first, second = (rows, flat) if axis == 0 else (flat, rows)
    by_x = _dot(grad, weight, grad.ndim - 1, 1 - axis).astype(x.dtype)
    by_weight = jax.lax.platform_dependent(
        first,
        second,
        cpu=_transposed_first,
        default=lambda x, y: _dot(x, y, 0, 0),
    )
    return by_x, by_weight.astype(weight.dtype)


_product.defvjp(_forward, _backward)


def _transposed_first(x, y):
    """x^T y, f32[K, N], for x [rows, K] and y [rows, N], on XLA:CPU.

    The factor with fewer columns is copied into transposed order first.
    """
    if x.shape[-1] > y.shape[-1]:
        return jax.lax.optimization_barrier(_transposed_first(y, x)).T
    # The barriers and the extra axis keep XLA from fusing the transpose into the
    # product, which would convert both factors to float32.
    transposed = jax.lax.optimization_barrier(x.T[None])
    return _dot(jnp.squeeze(transposed, 0), y, 1, 0)


def _dot(x, y, axis_x, axis_y):
    return jax.lax.dot_general(
        x,
        y,
        (((axis_x,), (axis_y,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
