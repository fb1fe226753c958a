"""Coefficients of a term that hold entropy or KL near a target.

The coefficient is the advantage of its term; `loss.times_advantage` multiplies the loss
by it. Example: a KL term whose coefficient was set by the previous step's divergence:

    adv.Term(
        advantage=adv.controlled(
            adv.assign_constant,
            adv.delayed(adv.kl_controller(0.1, rate=0.01)),
            adv.sampled_kl,
        ),
        weighting=adv.token_mean(),
        loss_fn=loss.times_advantage(loss.kl_k3()),
    )
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.controller import Controller
from rljax.types import Credit, Rollout


def entropy_controller(
    *,
    target: ArrayLike = 0.2,
    step: ArrayLike = 1e-4,
    initial: ArrayLike = 0.0,
    low: ArrayLike = 0.0,
    high: ArrayLike = 0.005,
) -> Controller:
    """Maps an entropy e to a bonus coefficient c, which is on while e is too low.

    c <- clip(c + step if e < target else c - step, low, high); the value is c if
    e < target (strictly), else 0. The state is c, f32[].

    Args:
      target: nats.
      step: change of c per update.
      initial, low, high: c's start and bounds.

    Source: Skywork-OR1, arXiv:2505.22312; code SkyworkAI/Skywork-OR1
      verl/trainer/ppo/core_algos.py `EntController`, or1_scripts (PAPER).
    Variants: the released code uses the new value at the next training step; wrap the
      controller in `delayed` for that.
    """
    check.number("target", target, low=0)
    check.number("step", step, low=0)
    check.ordered(low=low, initial=initial, high=high)
    start = jnp.asarray(initial, jnp.float32)

    def update(entropy, c):
        short = entropy < target
        c = jnp.clip(c + jnp.where(short, step, -step), low, high)
        return jnp.where(short, c, 0.0), c

    return Controller(lambda: (jnp.zeros((), jnp.float32), start), update)


def sampled_entropy(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[]: mean -log pi_old over response tokens, an entropy estimate, nats."""
    del credit
    return numerics.masked_mean(-rollout.old.logp, rollout.samples.mask)


def kl_controller(
    target: ArrayLike,
    *,
    rate: ArrayLike,
    initial: ArrayLike = 0.2,
    largest_error: ArrayLike = 0.2,
) -> Controller:
    """Maps a divergence d to a penalty coefficient c, which grows while d is too large.

    c <- c (1 + rate clip(d / target - 1, -largest_error, largest_error)). The
    state is c, f32[].

    Args:
      target: wanted divergence, nats, in the unit of the measurement.
      rate: samples per update / the paper's horizon (10,000 samples).
      initial: the coefficient's start.
      largest_error: bound of the relative error d / target - 1.

    Source: arXiv:1909.08593, section 2.2; peers' adaptive KL controllers (PAPER).
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
    """f32[]: mean log(pi_old / pi_ref) over response tokens (k1), nats per token."""
    del credit
    gap = rollout.old.logp - rollout.reference.logp
    return numerics.masked_mean(gap, rollout.samples.mask)
