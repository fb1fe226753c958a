"""KL control: a coefficient that holds the divergence from a reference at a target."""

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage.controller import Controller
from rljax.types import Credit, Rollout


def kl_controller(
    target: jax.typing.ArrayLike,
    *,
    rate: jax.typing.ArrayLike,
    initial: jax.typing.ArrayLike = 0.2,
    largest_error: jax.typing.ArrayLike = 0.2,
) -> Controller:
    """From a divergence d to a penalty's coefficient, which grows while d is too large.

    c <- c (1 + rate clip(d / target - 1, -largest_error, largest_error)). A term whose
    coefficient it is, as the value that the last step's divergence asked for:

        adv.Term(
            loss.times_advantage(loss.kl_k3()),
            weighting=adv.token_mean(),
            advantage=adv.controlled(
                adv.set_advantage,
                adv.delayed(adv.kl_controller(0.1, rate=0.01)),
                adv.sampled_kl,
            ),
        )

    Args:
      target: nats, in the unit of what is measured.
      rate: samples per update over the samples that the coefficient takes to move
        (there called the horizon, 10,000).
      initial: the coefficient's start.
      largest_error: bounds the relative error.

    Source: arXiv:1909.08593, section 2.2 (PAPER); peers' adaptive KL controllers.
    """
    check.number("target", target, above=0)
    check.number("rate", rate, above=0, high=1)
    check.number("initial", initial, above=0)
    check.number("largest_error", largest_error, above=0, high=1)
    start = jnp.asarray(initial, jnp.float32)

    def update(divergence, c):
        error = jnp.clip(divergence / target - 1, -largest_error, largest_error)
        c = c * (1 + rate * error)
        return c, c

    return Controller(lambda: (start, start), update)


def sampled_kl(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[]: mean log(pi_old / pi_ref) over response tokens, k1, nats per token."""
    del credit
    gap = rollout.old.logp - rollout.reference.logp
    return numerics.masked_mean(gap, rollout.samples.mask)
