"""Loss functions from loss functions."""

from rljax import check
from rljax.loss.surrogate import token_ratio
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
