"""The origin of `old`: a fingerprint of the parameters it was measured with.

Samples may be replayed, stale, or drawn with averaged parameters. The actor marks `old`
with a fingerprint. The update takes `old` for the current policy's statistics only if
the fingerprint fits its own parameters. If the algorithm never asks, the compiled loop
computes no fingerprint.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rljax.types import Rollout, TokenStats, is_measured


def of(params: Any, old: TokenStats) -> jax.Array:
    """u32[P]: the fingerprint of `old` and of the parameters it was measured with.

    It covers the numbers of `old`, too: if somebody replaces them, the rollout no
    longer fits.
    """
    return _fingerprint(params) ^ jax.vmap(_fingerprint)(old)


def fits(rollout: Rollout, params: Any) -> jax.Array:
    """bool[]: every prompt's `old` was measured with exactly these parameters."""
    if not (is_measured(rollout.origin) and is_measured(rollout.old)):
        return jnp.zeros((), bool)
    return jnp.all(rollout.origin == of(params, rollout.old))


def _fingerprint(tree):
    """u32[]: a sum over all bits, each word times an odd number of its own place.

    Whole numbers add up the same in any order, hence on any mesh.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        total = total * jnp.uint32(16777619) + jnp.sum(_words(leaf), dtype=jnp.uint32)
    return total


def _words(x):
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    place = jnp.ones(bits.shape, jnp.uint32)
    for axis in range(bits.ndim):  # no reshape: axes may be sharded
        number = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place = place * jnp.uint32(2654435761) + 2 * number
    return bits * (place | 1)
