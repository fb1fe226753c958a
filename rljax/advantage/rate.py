"""Advantages as functions of the group's solve rate p: the difficulty and sign axes.

A static method on 0/1 rewards is two functions of p: the advantages A_S of a success
and A_F of a failure, or as well two masses m_S = p A_S and m_F = -(1 - p) A_F. A method
that scales both classes alike is `center_by_group()` and a `scale_by_rate`; one that
treats them apart is an `assign_by_class`. Symbols: q = 1 - p; c successes among n
members.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage import baseline, solve_rate
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.advantage.solve_rate import Group
from rljax.metric import Fault


def scale_by_rate(fn: Callable[[jax.Array], jax.Array]) -> AdvantageTransform:
    """A * fn(p), p the mean of the group's rewards, which must lie in [0, 1].

    An infinite factor counts as 0, so `lambda p: 1 / p` is safe: where it is infinite
    no member has an advantage to scale.

    Args:
      fn: f32[P, 1, 1] -> f32[P, 1, 1], or a number.

    Returns:
      A stateless transform. Reads `verdict.reward`; changes `advantage` and counts
      members' rewards outside [0, 1] in `fault/reward_out_of_range`.
    """
    check.function("fn", fn, "p")

    def apply(credit, rollout):
        factor = jnp.asarray(fn(solve_rate.by_reward(rollout, credit.member).p))
        factor = jnp.where(jnp.isinf(factor), 0.0, factor)
        reward = rollout.verdict.reward[..., None]
        outside = credit.member & ~((reward >= 0) & (reward <= 1))
        credit = credit.replace(advantage=credit.advantage * factor)
        return credit.log(**{"fault/reward_out_of_range": Fault(jnp.sum(outside))})

    return stateless(apply)


def assign_by_class(
    success_fn: Callable[[Group], jax.typing.ArrayLike],
    failure_fn: Callable[[Group], jax.typing.ArrayLike],
) -> AdvantageTransform:
    """A = success_fn(group) for correct samples, failure_fn(group) for the others.

    The advantage so far is replaced: only `verdict.correct` is read. Where a function
    is not finite (1 / p of a group without successes) its value counts as 0.

    Args:
      success_fn, failure_fn: `Group` -> f32[P, 1, 1] or a number.
    """
    check.function("success_fn", success_fn, "group")
    check.function("failure_fn", failure_fn, "group")

    def apply(credit, rollout):
        group = solve_rate.by_correct(rollout, credit.member)
        correct = rollout.verdict.correct[..., None]
        value = jnp.where(correct, success_fn(group), failure_fn(group))
        value = jnp.where(jnp.isfinite(value), value, 0.0)
        return credit.replace(advantage=value.astype(jnp.float32))

    return stateless(apply)


def center_by_risk(beta: jax.typing.ArrayLike) -> AdvantageTransform:
    """(e^(beta r) / mean(e^(beta r)) - 1) / beta: the gradient of a log-mean-exp.

    The objective is (1 / beta) log E[e^(beta r)], from the mean (beta -> 0) to the best
    of the group. For r in {0, 1}: (r - p) (e^beta - 1) / (beta (1 + p (e^beta - 1))).

    Args:
      beta: risk seeking, > 0.

    Source: RS-GRPO (PAPER: authors' code, Jackory/RS-GRPO).
    """
    check.number("beta", beta, above=0)

    def apply(credit, rollout):
        del rollout
        baseline.require_group(credit, 2, "center_by_risk()")
        a, m = credit.advantage, credit.member
        top = jnp.max(jnp.where(m, a, -jnp.inf), 1, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        # Members are at most the top; another row's reward may lie far above it.
        tilt = jnp.exp(numerics.bounded(beta * (a - top)))
        mean = numerics.masked_mean(tilt, m, 1, keepdims=True)
        ratio = numerics.safe_divide(tilt, mean)
        centred = jnp.where(baseline.equal_groups(credit), 0.0, (ratio - 1) / beta)
        return credit.replace(advantage=centred)

    return stateless(apply)
