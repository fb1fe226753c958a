"""Numerical idioms that are easy to get wrong, each with the reason it exists."""

import jax
import jax.numpy as jnp


def safe_divide(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator, and 0 where the denominator is 0.

    Dividing first and masking later gives NaN gradients (0 * inf), hence two wheres.
    """
    zero = denominator == 0
    return jnp.where(zero, 0.0, numerator / jnp.where(zero, 1.0, denominator))


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


def strong(tree):
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


def equal_steps(total: int, num: int) -> list[int]:
    """Whole numbers in `num` equal steps up to `total`, rounded up.

    >>> equal_steps(10, 4)
    [3, 5, 8, 10]
    """
    return [-(-total * (i + 1) // num) for i in range(num)]
