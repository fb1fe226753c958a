"""The origin of `old`: a fingerprint of the parameters it was measured with.

The learner saves a forward pass if it can use `old` as the current policy's statistics.
But samples may be replayed, stale, or drawn with averaged parameters. So the actor
marks `old` with a fingerprint, and the learner uses `old` only if the fingerprint
matches its own parameters. If no algorithm needs it, XLA removes the computation.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rljax.types import Rollout, TokenStats, is_measured


def of(params: Any, old: TokenStats) -> jax.Array:
    """u32[P]: the fingerprint of `old` and of the parameters it was measured with.

    It covers the numbers of `old` as well: if they are replaced, the fingerprint no
    longer matches.
    """
    return _fingerprint(params) ^ jax.vmap(_fingerprint)(old)


def fits(rollout: Rollout, params: Any) -> jax.Array:
    """bool[]: every prompt's `old` was measured with exactly these parameters."""
    if not (is_measured(rollout.origin) and is_measured(rollout.old)):
        return jnp.zeros((), bool)
    return jnp.all(rollout.origin == of(params, rollout.old))


def _fingerprint(tree):
    """u32[]: the sum of all words, each times an odd number computed from its position.

    Integer sums do not depend on their order, so every mesh gives the same.
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
