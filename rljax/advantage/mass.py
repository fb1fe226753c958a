"""Gradient masses: how much a method pushes samples up and down, and where.

For a prompt with solve rate p, grad J = m_S g_S - m_F g_F, where g_S and g_F are the
mean gradients of log-likelihood of successes and failures, m_S = p A_S and
m_F = -(1 - p) A_F. The masses are computed from the actual advantages or coefficients,
so they are right for every advantage, surrogate, clip and mask.

Source: arXiv:2607.01490 (SECONDARY; definitions of the batch's scalars RECONSTRUCTED).
"""

import jax
import jax.numpy as jnp

from rljax import numerics


def masses(advantage: jax.Array, valid: jax.Array, lengths: jax.Array | None = None):
    """Masses of each group from its advantages.

    Args:
      advantage: f32[P, G].
      valid: bool[P, G], rows that count.
      lengths: i32[P, G] response tokens; rows then count in proportion to them, as in a
        token mean. None counts rows equally.

    Returns:
      (m_S, m_F), each f32[P]: the sums of positive and of negated negative advantages.
    """
    share = valid.astype(jnp.float32)
    share = share if lengths is None else share * lengths.astype(jnp.float32)
    share = numerics.safe_divide(share, jnp.sum(share, -1, keepdims=True))
    return (
        jnp.sum(share * jnp.maximum(advantage, 0), -1),
        jnp.sum(share * jnp.maximum(-advantage, 0), -1),
    )


def summary(m_S: jax.Array, m_F: jax.Array, p: jax.Array) -> dict[str, jax.Array]:
    """Scalars of a batch of groups, from masses and solve rates f32[P].

    positive, negative: means of m_S and m_F over groups.
    log_ratio: log(sum m_S / sum m_F); 0 if one of the sums is 0.
    difficulty: mean solve rate, weighted by w = m_S + m_F.
    effective_groups: (sum w)^2 / sum w^2 (Kish's effective sample size).
    zero_share: fraction of groups with w = 0.
    """
    w = m_S + m_F
    total_S, total_F, total = jnp.sum(m_S), jnp.sum(m_F), jnp.sum(w)
    both = (total_S > 0) & (total_F > 0)
    ratio = numerics.safe_divide(total_S, total_F)
    return {
        "positive": total_S / w.shape[0],
        "negative": total_F / w.shape[0],
        "log_ratio": jnp.where(both, jnp.log(jnp.where(both, ratio, 1.0)), 0.0),
        "difficulty": numerics.safe_divide(jnp.sum(w * p), total),
        "effective_groups": numerics.safe_divide(total**2, jnp.sum(w**2)),
        "zero_share": jnp.mean(w == 0),
    }


def of_coefficients(coefficient: jax.Array, p: jax.Array) -> dict[str, jax.Array]:
    """The same scalars from the update's coefficients -dL/dlogp f32[P, G, T].

    Coefficients are shares of the whole batch already, so `positive` and `negative` are
    sums of them: under a token mean, sums over tokens of A / number of tokens.
    """
    P = coefficient.shape[0]
    m_S = jnp.sum(jnp.maximum(coefficient, 0), (1, 2)) * P
    m_F = jnp.sum(jnp.maximum(-coefficient, 0), (1, 2)) * P
    return summary(m_S, m_F, p)
