"""Digests of arrays: of a state on the device, of a data set on the host."""

import functools
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Leaf(NamedTuple):
    """What one pass over an array finds.

    digest: a number in [0, 2**32) computed from the array's bits and their positions.
    nan, infinite: whether any of its numbers is NaN or infinite.
    """

    digest: int
    nan: bool
    infinite: bool


def examine(tree: Any) -> dict[str, Leaf]:
    """Examines every leaf on its own devices; returns a `Leaf` by tree path.

    The digests do not depend on the mesh.
    """
    groups: dict[Any, dict[str, jax.Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        bound = isinstance(leaf, jax.Array) and leaf.committed
        devices = frozenset(leaf.sharding.device_set) if bound else None
        groups.setdefault(devices, {})[jax.tree_util.keystr(path)] = leaf
    free = groups.pop(None, {})  # uncommitted leaves fit any group
    first, *rest = groups.values() or [{}]
    found: dict[str, Leaf] = {}
    for group in (first | free, *rest):
        spread = any(_is_spread(x) for x in group.values())
        for name, values in jax.device_get(_examine(group, whole=spread)).items():
            digest, nan, infinite = values
            found[name] = Leaf(int(digest), bool(nan), bool(infinite))
    return found


def not_finite(tree: Any) -> list[str]:
    """Paths of the leaves with a NaN or an infinity; checked on the host."""
    return [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(tree)
        if _is_float(leaf) and not np.all(np.isfinite(np.asarray(leaf)))
    ]


def fingerprint(tree: Any) -> str:
    """A digest of host arrays: of their tree paths, dtypes, shapes and bytes.

    Two data sets with the same fingerprint hold the same items in the same order.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.ascontiguousarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype}{list(array.shape)}\n"
        digest.update(name.encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()[:16]


def _is_spread(x: Any) -> bool:
    return isinstance(x, jax.Array) and len(x.sharding.device_set) > 1


# Number of elements examined at once, whose words and positions take memory. Without
# this limit XLA:CPU holds those of all leaves together, more than the state itself.
_PIECE = 2**20


@functools.partial(jax.jit, static_argnames="whole")
def _examine(leaves: dict[str, jax.Array], whole: bool = False):
    return {name: _examine_array(x, whole) for name, x in leaves.items()}


def _examine_array(x: jax.Array, whole: bool):
    """(digest, any NaN, any infinity) of an array, some rows at a time.

    Args:
      whole: all rows at once, for arrays that are spread over several devices.
    """
    rows = x.shape[0] if x.ndim else 1
    each = max(1, _PIECE // max(1, x.size // max(1, rows)))
    if whole or rows <= each or jnp.issubdtype(x.dtype, jnp.complexfloating):
        return _examine_rows(x, 0)

    def add(found, start, size):
        part = jax.lax.dynamic_slice_in_dim(x, start, size)
        more = _examine_rows(part, start)
        return found[0] + more[0], found[1] | more[1], found[2] | more[2]

    no = jnp.zeros((), bool)
    found = jax.lax.fori_loop(
        0,
        rows // each,
        lambda i, found: add(found, i * each, each),
        (jnp.uint32(0), no, no),
    )
    left = rows % each
    return add(found, rows - left, left) if left else found


def _examine_rows(x: jax.Array, first):
    """The same for rows x, which begin at row `first` of an array."""
    no = jnp.zeros((), bool)
    is_float = _is_float(x)
    return (
        _digest(x, first),
        jnp.any(jnp.isnan(x)) if is_float else no,
        jnp.any(jnp.isinf(x)) if is_float else no,
    )


def _is_float(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)


def _digest(x: jax.Array, first) -> jax.Array:
    """u32[]: the sum of x's words, each times an odd number made from its position.

    Multiplication by an odd number modulo 2**32 is invertible, so every changed word
    changes its product. The sum does not depend on the order, so all shardings give the
    same digest.

    Args:
      first: index of x's first row in the whole array.
    """
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        if axis == 0:
            index += jnp.asarray(first, jnp.uint32)
        place = (place + index) * jnp.uint32(0x9E3779B1)
        place = place ^ (place >> jnp.uint32(15))
    return jnp.sum(words * (place | jnp.uint32(1)), dtype=jnp.uint32)


def _words(x: jax.Array) -> jax.Array:
    """The bits of x as u32; a wider number becomes two of them on a new last axis."""
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
