"""Loss functions made from loss functions."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check
from rljax.loss.surrogate import is_clipped, token_ratio
from rljax.types import LossFn


def against_old(loss_fn: LossFn) -> LossFn:
    """The loss with `rollout.old` in place of `rollout.reference`."""
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: loss_fn(
        now, credit, rollout.replace(reference=rollout.old)
    )


def against_behaviour(loss_fn: LossFn) -> LossFn:
    """The loss with `samples.behaviour` (mu) in place of `rollout.old`.

    This is verl's bypass mode: PPO's ratio becomes pi / mu and needs no further
    importance weight. With `cispo` it is truncated REINFORCE.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: loss_fn(
        now, credit, rollout.replace(old=rollout.samples.behaviour)
    )


def unless_clipped(
    loss_fn: LossFn, low: ArrayLike = 0.2, high: ArrayLike = 0.2
) -> LossFn:
    """The loss, but 0 where PPO would clip the ratio rho = pi / pi_old.

    That is where A > 0 and rho > 1 + high, or A < 0 and rho < 1 - low. Elsewhere the
    loss is unchanged.

    Args:
      low, high: distances of the bounds from 1.

    Source: MiniRL, arXiv:2512.01374, eq. (7) (SECONDARY).
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        ratio = token_ratio(now, rollout)
        clipped = is_clipped(ratio, credit.advantage, low, high)
        return jnp.where(clipped, 0.0, loss_fn(now, credit, rollout))

    return loss


def times_advantage(loss_fn: LossFn) -> LossFn:
    """The loss times the term's advantage, for use as a coefficient of the term.

    An advantage chain runs once per rollout batch, so the coefficient is constant over
    the batch.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: credit.advantage * loss_fn(now, credit, rollout)


def times_ratio(loss_fn: LossFn) -> LossFn:
    """The loss times the ratio rho = pi / pi_old; gradients flow through rho as well.

    A sampled KL times rho estimates the KL of the current policy also off-policy, in
    value and gradient: rho k3 of DeepSeek-V3.2, TRL's default.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: (
        token_ratio(now, rollout) * loss_fn(now, credit, rollout)
    )
