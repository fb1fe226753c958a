"""Digests of arrays: of a state's bits, on the device; of a data set's, on the host."""

import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def of_leaves(state: Any) -> dict[str, int]:
    """A number in [0, 2**32) per leaf, by its place; on any mesh the same."""
    digests = {
        jax.tree_util.keystr(path): _digest(leaf)
        for path, leaf in jax.tree.leaves_with_path(state)
    }
    return {leaf: int(digest) for leaf, digest in jax.device_get(digests).items()}


@jax.jit
def _digest(x: jax.Array) -> jax.Array:
    """u32: the sum of x's words, each times an odd number that its place gives.

    Modulo 2**32 an odd factor keeps every bit that differs, and sums do not depend on
    their order, so that all shardings give the same.
    """
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place = (place + index) * jnp.uint32(0x9E3779B1)
        place = place ^ (place >> jnp.uint32(15))
    return jnp.sum(words * (place | jnp.uint32(1)), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as u32; wider numbers become two on a last axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return _words(jax.random.key_data(x))
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        return jnp.stack([_words(x.real), _words(x.imag)])
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    kind = jnp.iinfo if jnp.issubdtype(x.dtype, jnp.integer) else jnp.finfo
    bits = kind(x.dtype).bits
    if bits < 8:
        return _words(x.astype(jnp.float32))  # which holds them exactly
    words = {8: jnp.uint8, 16: jnp.uint16}.get(bits, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, words).astype(jnp.uint32)


def not_finite(tree: Any, *, infinite: bool = True) -> list[str]:
    """The leaves in which a number is NaN or, unless `infinite` is false, infinite."""
    floats = {
        jax.tree_util.keystr(path): _is_bad(leaf, infinite)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    return [leaf for leaf, bad in jax.device_get(floats).items() if bad]


def fingerprint(tree: Any) -> str:
    """A digest of host arrays: of their places in the tree, dtypes, shapes and bytes.

    Two data sets of the same fingerprint are the same, in the same order.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype}{list(array.shape)}\n"
        digest.update(name.encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()[:16]


@functools.partial(jax.jit, static_argnums=1)
def _is_bad(x: jax.Array, infinite: bool) -> jax.Array:
    return ~jnp.all(jnp.isfinite(x)) if infinite else jnp.any(jnp.isnan(x))
