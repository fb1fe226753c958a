"""Numerical idioms that are easy to get wrong, each with the reason it exists."""

import jax
import jax.numpy as jnp


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator, and 0 where the denominator is 0.

    Dividing first and masking the result gives NaN gradients (0 * inf), so a `where`
    guards the denominator, too.
    """
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


# Cap of a log ratio of two policies before it is exponentiated, nats: e^20 is 5e8, so
# products, squares and sums over a batch stay finite in float32.
FARTHEST = 20.0

# Largest difference of two log-probabilities, nats, that counts as rounding: one policy
# evaluated in float32 with other shapes or in another program differs by 1e-6 to 1e-5.
# (bfloat16 differs by far more: there let the learner measure `old`.)
ROUNDING = 1e-4


def bounded(log_ratio: jax.Array) -> jax.Array:
    """min(log_ratio, 20), to be exponentiated; exact up to 20 nats, bit for bit.

    Above 20 the exponential is e^20 with gradient 0. So one token whose probability has
    changed this much neither makes a loss infinite nor outweighs a batch; verl clamps
    at 20, too. Masking the exponential instead would be too late: its gradient would be
    0 * inf. There is no lower bound, as e^d goes to 0 by itself. NaN stays NaN.
    """
    return jnp.where(log_ratio > FARTHEST, FARTHEST, log_ratio)


def masked_mean(values: jax.Array, mask: jax.Array, axis=None, keepdims=False):
    """Mean of `values` where `mask` holds; 0 over an empty mask.

    Values outside the mask may be NaN: they are replaced, not multiplied by 0.

    Args:
      values, mask: arrays that broadcast against each other.
      axis, keepdims: as in `jnp.mean`; None averages over all axes.
    """
    mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(values.shape, mask.shape))
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis, keepdims=keepdims)
    count = jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.float32)
    return safe_divide(total, count)


def masked_var(values: jax.Array, mask: jax.Array, axis=None, keepdims=False, ddof=0):
    """Variance of `values` where `mask` holds; 0 if it holds for at most `ddof`."""
    mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(values.shape, mask.shape))
    mean = masked_mean(values, mask, axis, keepdims=True)
    square = jnp.where(mask, (values - mean) ** 2, 0.0)
    count = jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.float32)
    total = jnp.sum(square, axis=axis, keepdims=keepdims)
    return safe_divide(total, jnp.maximum(count - ddof, 0.0))


def logp_and_entropy(logits: jax.Array, tokens: jax.Array):
    """Log-probability of `tokens` [...] and entropy under `logits` [..., V], nats.

    The token's logit is selected by comparison, not by gather: the gradient of a
    gather is a scatter, which is slow on every device and a collective when V is
    sharded. An invalid id gets NaN: it selects no logit, and the sum of none, 0, is
    the shifted logit of the most likely token.

    Returns:
      (logp, entropy), each f32[...].
    """
    logits = logits.astype(jnp.float32)
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, -1, keepdims=True))
    exp = jnp.exp(shifted)
    total = jnp.sum(exp, -1)
    ids = jax.lax.broadcasted_iota(tokens.dtype, logits.shape, logits.ndim - 1)
    chosen = ids == tokens[..., None]
    log_total = jnp.log(total)
    logp = jnp.sum(jnp.where(chosen, shifted, 0.0), -1) - log_total
    logp = jnp.where((tokens >= 0) & (tokens < logits.shape[-1]), logp, jnp.nan)
    # -inf logits (excluded tokens) have probability 0 and contribute 0, not NaN.
    weighted = jnp.where(exp > 0, exp * shifted, 0.0)
    entropy = log_total - jnp.sum(weighted, -1) / total
    return logp, entropy


def readable_ids(tokens: jax.Array, read: jax.Array, num_rows: int) -> jax.Array:
    """Token ids [...] that are safe to look up in a table of `num_rows` rows.

    Padding may be any number, -100 in many tools. Looking up such a number gives NaN,
    and no mask removes it: 0 * NaN is NaN, in attention and in every gradient. So an
    invalid id becomes 0 where `read`, bool[...], is False. Where `read` is True it
    becomes `num_rows`, and its lookup is NaN; -1 would silently read the last row.
    """
    good = (tokens >= 0) & (tokens < num_rows)
    return jnp.where(good, tokens, jnp.where(read, num_rows, 0).astype(tokens.dtype))


def strongly_typed(tree):
    """A copy with weak types made strong, so that carrying it never retraces.

    It is a copy because states are donated: donating a factory's constant would delete
    it after the first run, and no buffer can be donated twice.
    """
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(jnp.copy(x), jnp.asarray(x).dtype), tree
    )


def all_finite(tree) -> jax.Array:
    """bool[]: every floating-point leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def stays_finite(old, new) -> jax.Array:
    """bool[]: every number of `new` is finite, or equals that of `old` (NaN as well).

    Some states begin with infinite numbers: a best loss so far does.
    """

    def stays(old, new):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return jnp.ones((), bool)
        same = (new == old) | (jnp.isnan(new) & jnp.isnan(old))
        return jnp.all(jnp.isfinite(new) | same)

    leaves = jax.tree.leaves(jax.tree.map(stays, old, new))
    return jnp.all(jnp.stack([jnp.ones((), bool), *leaves]))


def even_ends(total: int, num: int) -> list[int]:
    """`num` evenly spaced integers that end at `total`, rounded up.

    >>> even_ends(10, 4)
    [3, 5, 8, 10]
    """
    return [-(-total * (i + 1) // num) for i in range(num)]
