"""Numerical idioms that are easy to get wrong, each with the reason it exists."""

import jax
import jax.numpy as jnp


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator, and 0 where the denominator is 0.

    Dividing first and masking later gives NaN gradients (0 * inf), hence two wheres.
    """
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


# A log ratio of two policies, nats, beyond which e^d is not taken further: e^20 is
# 5e8, so products, squares and sums over a batch of it stay finite in float32.
FARTHEST = 20.0

# What two evaluations of one policy differ by, nats: float32 on other shapes or
# another program gives 1e-6 to 1e-5. A difference up to this is none. (bfloat16
# differs by far more: there let the learner measure `old`.)
ROUNDING = 1e-4


def bounded(log_ratio: jax.Array) -> jax.Array:
    """min(log_ratio, 20), for an exponential of it: exact up to 20 nats, bit for bit.

    Beyond, e^d is e^20 and has no gradient, so one token that has moved out of reach
    neither makes a loss infinite nor outweighs a batch; verl clamps at 20, too. Masking
    the result instead would be too late: the gradient is then 0 * inf. There is no
    bound below, where e^d goes to 0 by itself. NaN stays NaN.
    """
    return jnp.where(log_ratio > FARTHEST, FARTHEST, log_ratio)


def masked_mean(values: jax.Array, mask: jax.Array, axis=None, keepdims=False):
    """Mean of `values` where `mask` holds; 0 over an empty mask.

    Values outside the mask may be NaN: they are replaced, not multiplied by 0.
    """
    mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(values.shape, mask.shape))
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=axis, keepdims=keepdims)
    count = jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.float32)
    return safe_divide(total, count)


def masked_var(values: jax.Array, mask: jax.Array, axis=None, keepdims=False, ddof=0):
    """Variance of `values` where `mask` holds; 0 when at most `ddof` are left."""
    mask = jnp.broadcast_to(mask, jnp.broadcast_shapes(values.shape, mask.shape))
    mean = masked_mean(values, mask, axis, keepdims=True)
    square = jnp.where(mask, (values - mean) ** 2, 0.0)
    count = jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.float32)
    total = jnp.sum(square, axis=axis, keepdims=keepdims)
    return safe_divide(total, jnp.maximum(count - ddof, 0.0))


def logp_and_entropy(logits: jax.Array, tokens: jax.Array):
    """Log-probability of `tokens` [...] and entropy under `logits` [..., V], nats.

    The token's logit is selected by comparison, not by gather: the gradient of a
    gather is a scatter, slow on every device and a collective when V is sharded. The
    log-probability of what is no token is NaN: 0 selected logits would give that of
    the most likely one.
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
    """Token ids [...] that a table of `num_rows` rows can be asked for.

    Padding is anything at all, -100 in many tools. Looked up as it is, it gives NaN,
    which no mask takes back: 0 * NaN is NaN, in attention and in every gradient. So
    where `read` [...] does not hold, what is no id becomes 0. Where it holds, what is
    no id becomes `num_rows`, whose row is NaN: -1 would silently be the last row.
    """
    good = (tokens >= 0) & (tokens < num_rows)
    return jnp.where(good, tokens, jnp.where(read, num_rows, 0).astype(tokens.dtype))


def strongly_typed(tree):
    """A copy with weak types made strong, so that carrying it never retraces.

    A copy, because states are donated: a factory's constant would be gone after the
    first run, and no buffer can be donated twice.
    """
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(jnp.copy(x), jnp.asarray(x).dtype), tree
    )


def all_finite(tree) -> jax.Array:
    """bool[]: every floating-point leaf is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


def stays_finite(old, new) -> jax.Array:
    """bool[]: no number of `new` became infinite or NaN.

    Some states begin with such numbers, as the best loss so far does: they may stay.
    """

    def stays(old, new):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return jnp.ones((), bool)
        same = (new == old) | (jnp.isnan(new) & jnp.isnan(old))
        return jnp.all(jnp.isfinite(new) | same)

    leaves = jax.tree.leaves(jax.tree.map(stays, old, new))
    return jnp.all(jnp.stack([jnp.ones((), bool), *leaves]))


def even_ends(total: int, num: int) -> list[int]:
    """Whole numbers in `num` equal steps up to `total`, rounded up.

    >>> even_ends(10, 4)
    [3, 5, 8, 10]
    """
    return [-(-total * (i + 1) // num) for i in range(num)]
