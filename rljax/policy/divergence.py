"""Exact divergences from the reference policy, over the whole vocabulary.

Logits of both policies are held for one chunk of tokens at a time.
"""

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.policy import score
from rljax.policy.base import Policy
from rljax.types import Measure, TokenStats


def divergences(logits: jax.Array, reference: jax.Array) -> dict[str, jax.Array]:
    """Divergences between two distributions over the last axis, f32[...].

    Args:
      logits, reference: f32[..., V] of pi and pi_ref, finite.

    Returns:
      kl_reverse: sum pi log(pi / pi_ref), nats.
      kl_forward: sum pi_ref log(pi_ref / pi), nats.
      chi_squared: sum pi^2 / pi_ref - 1.
    """
    now = jax.nn.log_softmax(logits.astype(jnp.float32))
    ref = jax.nn.log_softmax(reference.astype(jnp.float32))
    gap, p = now - ref, jnp.exp(now)
    return {
        "kl_reverse": jnp.sum(p * gap, -1),
        "kl_forward": -jnp.sum(jnp.exp(ref) * gap, -1),
        # sum p^2 / q - 1 would be mere rounding where both are nearly equal.
        "chi_squared": jnp.sum(p * jnp.expm1(numerics.bounded(gap)), -1),
    }


def against_reference(policy: Policy, *, max_logits: int = score.MAX_LOGITS) -> Measure:
    """A measure function for the learner: token statistics and exact divergences.

    Args:
      policy: scores both parameter sets; the reference's are `TrainState.reference`.
      max_logits: largest number of float32 logits to hold at once on each device.

    Returns:
      A measure function whose `extra` holds the `divergences` by name, f32[P, G, T].
      Each call costs a forward pass of the reference, without gradient.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.count("max_logits", max_logits)

    def measure(params, prompts, samples, reference=None):
        if reference is None:
            raise ValueError(
                "exact divergences need reference parameters, got None; start the run"
                " with them in TrainState.reference."
            )
        reference = jax.lax.stop_gradient(reference)
        own = policy.hidden(params, prompts, samples)
        other = policy.hidden(reference, prompts, samples)

        def stats(params, tokens, own, other):
            logits = policy.logits(params[0], own)
            known = numerics.logp_and_entropy(logits, tokens)
            return known, divergences(logits, policy.logits(params[1], other))

        (logp, entropy), extra = score.in_chunks(
            stats,
            lambda params, states: policy.logits(params[0], states),
            (policy.logits_params(params), policy.logits_params(reference)),
            samples,
            own,
            other,
            max_logits=max_logits // 2,  # for each of the two policies
        )
        return TokenStats(logp=logp, entropy=entropy, extra=extra)

    return measure
