"""Loss functions from loss functions."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check
from rljax.loss.surrogate import is_clipped, token_ratio
from rljax.types import LossFn


def against_old(loss_fn: LossFn) -> LossFn:
    """The loss with the sampling policy in the place of the reference."""
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: loss_fn(
        now, credit, rollout.replace(reference=rollout.old)
    )


def against_behaviour(loss_fn: LossFn) -> LossFn:
    """The loss with what the tokens were drawn from in the place of `old`.

    verl's bypass mode: PPO's ratio is then pi / mu and needs no further weight; with
    `cispo` it is truncated REINFORCE.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: loss_fn(
        now, credit, rollout.replace(old=rollout.samples.behaviour)
    )


def unless_clipped(
    loss_fn: LossFn, low: ArrayLike = 0.2, high: ArrayLike = 0.2
) -> LossFn:
    """The loss, but 0 where PPO would clip the ratio pi / pi_old.

    That is where A > 0 and the ratio is above 1 + high, or A < 0 and it is below 1 -
    low. A mask, not a bound: elsewhere the loss stays as it is.

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
    """The loss times the term's advantage, which is a coefficient of the whole term.

    An advantage chain runs once per rollout batch, so that is how often a coefficient
    made by `assign_constant` changes.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: credit.advantage * loss_fn(now, credit, rollout)


def times_ratio(loss_fn: LossFn) -> LossFn:
    """The loss times the ratio to `old`, through which its gradient flows, too.

    With it a sampled KL estimates the KL of the current policy off-policy, in value and
    gradient: rho k3 of DeepSeek-V3.2, TRL's default.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    return lambda now, credit, rollout: (
        token_ratio(now, rollout) * loss_fn(now, credit, rollout)
    )
