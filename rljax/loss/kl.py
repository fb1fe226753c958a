"""Divergences from the reference policy and entropy, each as a loss function.

d = log(pi_ref / pi) at a token sampled from pi. "Value" is the expected value of the
loss, "expected gradient" the expectation of its gradient on-policy. The second is not
the gradient of the first, which most codebases do not say. Both columns are tested by
exact enumeration.

| function | per token | value | expected gradient |
|---|---|---|---|
| `kl_k1` | -d | KL | 0: as a loss it does nothing |
| `kl_k2` | d^2 / 2 | biased | grad KL, exactly |
| `kl_k3` | e^d - 1 - d | KL | grad KL(pi_ref, pi), the forward KL, exactly |
| `kl_k3_straight_through` | value k3, gradient k2 | KL | grad KL, exactly |
| `kl_absolute` | abs(d) | biased | of neither KL |
| `chi_squared` | e^d + e^-d - 2 | chi2 | grad chi2 / 2 + grad KL(pi_ref, pi) |
| `chi_squared_straight_through` | gradient 2 (e^-d - 1) | chi2 | grad chi2, exactly |
| `kl_reverse_exact`, ... | sums over the vocabulary | exact | exact, every token |

KL is KL(pi, pi_ref), the reverse KL, and chi2 = E_pi[pi / pi_ref] - 1.

Exponents are capped at 20 nats (`numerics.bounded`): above, the exponential is finite
and has no gradient.

Source: Schulman, "Approximating KL divergence" (2020); chi2 arXiv:2403.03185, code
  cassidylaidlaw/llm_optimization (PAPER; gradients DERIVED).
Variants: the paper takes chi2 per sequence.
"""

import jax
import jax.numpy as jnp

from rljax import numerics
from rljax.types import LossFn, measured_extra


def kl_k1() -> LossFn:
    """log(pi / pi_ref): an unbiased value; use it for logging or in rewards only."""
    return lambda now, credit, rollout: now.logp - rollout.reference.logp


def kl_k2() -> LossFn:
    """(log(pi / pi_ref))^2 / 2: its expected gradient is the gradient of KL."""
    return lambda now, credit, rollout: 0.5 * (now.logp - rollout.reference.logp) ** 2


def _k3(now, rollout):
    d = numerics.bounded(rollout.reference.logp - now.logp)
    # expm1, because near 0 the result is d^2 / 2, which float32 loses beside 1.
    return jnp.expm1(d) - d


def kl_k3() -> LossFn:
    """e^d - 1 - d with d = log(pi_ref / pi): unbiased, never negative (GRPO's KL)."""
    return lambda now, credit, rollout: _k3(now, rollout)


def kl_k3_straight_through() -> LossFn:
    """The value of k3 with the gradient of k2 (verl's `k3+`)."""

    def loss(now, credit, rollout):
        k2 = 0.5 * (now.logp - rollout.reference.logp) ** 2
        return k2 + jax.lax.stop_gradient(_k3(now, rollout) - k2)

    return loss


def kl_absolute() -> LossFn:
    """|log(pi / pi_ref)|: KL-Cov's penalty; no gradient where the policies agree.

    Where they differ by at most `numerics.ROUNDING`, value and slope are 0. Otherwise,
    for equal policies, the sign of a rounding error would decide the gradient.
    """

    def loss(now, credit, rollout):
        x = now.logp - rollout.reference.logp
        slope = jnp.where(jnp.abs(x) > numerics.ROUNDING, jnp.sign(x), 0.0)
        return slope * x

    return loss


def _chi_squared(now, rollout):
    x = now.logp - rollout.reference.logp
    # e^-x - 1 has mean 0. This control variate makes every token's value non-negative.
    return jnp.expm1(numerics.bounded(x)) + jnp.expm1(numerics.bounded(-x))


def chi_squared() -> LossFn:
    """e^x + e^-x - 2 with x = log(pi / pi_ref), differentiated as it is written."""
    return lambda now, credit, rollout: _chi_squared(now, rollout)


def chi_squared_straight_through() -> LossFn:
    """The value of `chi_squared`; its expected gradient is exactly that of chi2."""

    def loss(now, credit, rollout):
        x = now.logp - rollout.reference.logp
        slope = jnp.where(x > numerics.FARTHEST, 0.0, 2 * jnp.expm1(x))
        line = jax.lax.stop_gradient(slope) * now.logp
        return line + jax.lax.stop_gradient(_chi_squared(now, rollout) - line)

    return loss


def _exact(name: str) -> LossFn:
    def loss(now, credit, rollout):
        del credit, rollout
        supplier = (
            "give the learner a measure function that compares whole distributions:"
            " rljax.policy.divergence.against_reference(policy)"
        )
        return measured_extra(now, "now", name, supplier)

    return loss


def kl_reverse_exact() -> LossFn:
    """sum_v pi log(pi / pi_ref), nats; reads `now.extra["kl_reverse"]`."""
    return _exact("kl_reverse")


def kl_forward_exact() -> LossFn:
    """sum_v pi_ref log(pi_ref / pi), nats; reads `now.extra["kl_forward"]`."""
    return _exact("kl_forward")


def chi_squared_exact() -> LossFn:
    """sum_v pi^2 / pi_ref - 1; reads `now.extra["chi_squared"]`."""
    return _exact("chi_squared")


def entropy_bonus_sampled() -> LossFn:
    """-H estimated from sampled tokens: value log pi, gradient of sg[log pi] log pi.

    sg[x] is x without its gradient. On-policy, the expected gradient is that of -H.
    Differentiating log pi itself would give 0 in expectation.

    Source: the score function's mean is 0 (DERIVED).
    """

    def loss(now, credit, rollout):
        line = jax.lax.stop_gradient(now.logp) * now.logp
        return line + jax.lax.stop_gradient(now.logp - line)

    return loss


def entropy_bonus() -> LossFn:
    """-H, exact over the vocabulary, nats: minimising it raises the entropy."""
    return lambda now, credit, rollout: -now.entropy
