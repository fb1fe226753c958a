"""Divergences from the reference policy and entropy, each as a loss function.

With d = log(pi_ref / pi) at a token sampled from pi. Value: what the term adds to the
loss in expectation. Gradient: what it does in expectation, on-policy. They differ, and
most codebases do not say so: both columns are tested by exact enumeration.

| function | per token | value | expected gradient |
|---|---|---|---|
| `kl_k1` | -d | KL | 0: as a loss it does nothing |
| `kl_k2` | d^2 / 2 | biased | grad KL, exactly |
| `kl_k3` | e^d - 1 - d | KL | grad of the reverse KL(pi_ref, pi), exactly: not grad KL |
| `kl_k3_straight` | value k3, gradient k2 | KL | grad KL, exactly |

Source: Schulman, "Approximating KL divergence" (2020); gradients DERIVED.
"""

import jax
import jax.numpy as jnp

from rljax.advantage.algebra import LossFn


def kl_k1() -> LossFn:
    """log(pi / pi_ref): an unbiased value; only for logging or for rewards."""
    return lambda now, credit, rollout: now.logp - rollout.reference.logp


def kl_k2() -> LossFn:
    """(log(pi / pi_ref))^2 / 2: its expected gradient is the gradient of KL."""
    return lambda now, credit, rollout: 0.5 * (now.logp - rollout.reference.logp) ** 2


def _k3(now, rollout):
    d = rollout.reference.logp - now.logp
    # expm1: e^d - 1 - d near 0 is d^2 / 2, lost in float32 if 1 is subtracted late.
    return jnp.expm1(d) - d


def kl_k3() -> LossFn:
    """e^d - 1 - d with d = log(pi_ref / pi): unbiased, never negative (GRPO's KL)."""
    return lambda now, credit, rollout: _k3(now, rollout)


def kl_k3_straight() -> LossFn:
    """The value of k3 with the gradient of k2 (verl's `k3+`)."""

    def loss(now, credit, rollout):
        k2 = 0.5 * (now.logp - rollout.reference.logp) ** 2
        return k2 + jax.lax.stop_gradient(_k3(now, rollout) - k2)

    return loss


def entropy_bonus() -> LossFn:
    """-H, exact over the vocabulary, nats: minimising it raises the entropy."""
    return lambda now, credit, rollout: -now.entropy
