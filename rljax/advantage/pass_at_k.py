"""Advantages whose objective is pass@k, from one group of n >= k samples.

All are ratios of binomial coefficients: chances that a subset of the group, drawn
without replacement, contains no success. c of n members are correct.

| transform | objective on-policy | pushes |
|---|---|---|
| `assign_pkpo` | pass@k | all up, successes more |
| `assign_pkpo_minus_one` | pass@k | successes up alone |
| `center_by_pkpo_leave_one_out` | near pass@k / k for large n | balanced |
| `assign_pass_at_k_training` | pass@k normalised by its deviation | balanced |
| `assign_lead_of_best` | pass@n | the only success up |

The first three `assign_...` replace the advantage and read `verdict.correct` alone; the
other two also read the reward. Without sampling error pass@k is the power objective of
order k: `center_by_group()` and `scale_by_focal_factor(k - 1)`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage import assign, baseline, solve_rate
from rljax.advantage.algebra import AdvantageTransform, chain, stateless
from rljax.advantage.solve_rate import Group


def all_from(part: jax.Array, total: jax.Array, k: int) -> jax.Array:
    """C(part, k) / C(total, k): chance that k of `total` all come from `part`.

    Args:
      part, total: f32 counts of any shape, part <= total.
      k: subset size, >= 0; where k > total no subset exists and the result is 0.
    """
    result = jnp.ones(jnp.broadcast_shapes(part.shape, total.shape), jnp.float32)
    for drawn in range(k):
        left = jnp.maximum(total - drawn, 0.0)
        result *= numerics.safe_divide(jnp.maximum(part - drawn, 0.0), left)
    return result


def _needs(k: int, name: str) -> AdvantageTransform:
    def apply(credit, rollout):
        del rollout
        baseline.require_group(credit, k, name)
        return credit

    return stateless(apply)


def _silence_short_groups(k: int) -> AdvantageTransform:
    """Groups with fewer than k members (verifier failures) have no subset: A = 0."""

    def apply(credit, rollout):
        enough = solve_rate.by_correct(rollout, credit.member).n >= k
        return credit.replace(advantage=jnp.where(enough, credit.advantage, 0.0))

    return stateless(apply)


def _miss_beside_success(group: Group, k: int) -> jax.Array:
    """a: chance that k - 1 other members all fail, for a correct sample."""
    return all_from(group.n - group.c, group.n - 1, k - 1)


def _miss_beside_failure(group: Group, k: int) -> jax.Array:
    """b: chance that k - 1 other members all fail, for a failed sample."""
    return all_from(group.n - group.c - 1, group.n - 1, k - 1)


def _by_class(name: str, k: int, success_fn, failure_fn) -> AdvantageTransform:
    assigned = assign.assign_by_class(success_fn, failure_fn)
    return chain(_needs(k, f"{name}({k})"), assigned, _silence_short_groups(k))


def assign_pkpo(k: int) -> AdvantageTransform:
    """A_S = k, A_F = k (1 - b): pass@k's unbiased estimate, no baseline.

    The mean of max(r) over the subsets of size k that contain the sample, times k.
    Failures are pushed up too, and a solved group still counts.

    Source: PKPO, arXiv:2505.15201 (SECONDARY; here checked by enumerating subsets).
    """
    check.count("k", k)
    return _by_class(
        "assign_pkpo", k, lambda g: k, lambda g: k * (1 - _miss_beside_failure(g, k))
    )


def assign_pkpo_minus_one(k: int) -> AdvantageTransform:
    """A_S = k a, A_F = 0: each subset's max minus the max without the sample.

    Source: PKPO's leave-one-out-minus-one baseline, arXiv:2505.15201 (DERIVED here,
      checked by enumerating subsets).
    """
    check.count("k", k)
    return _by_class(
        "assign_pkpo_minus_one",
        k,
        lambda g: k * _miss_beside_success(g, k),
        lambda g: 0.0,
    )


def center_by_pkpo_leave_one_out(k: int) -> AdvantageTransform:
    """A = a (r - mean of the others): RLOO scaled by the chance that others miss.

    Only near the gradient of pass@k / k for large groups (at n = 8, k = 4, p = 1/4 its
    slope is .482, not .422): a counts the sample's own class.

    Source: tajwarfahim/maxrl (SECONDARY code).
    """
    check.count("k", k)

    def scale(credit, rollout):
        factor = _miss_beside_success(solve_rate.by_correct(rollout, credit.member), k)
        return credit.replace(advantage=credit.advantage * factor)

    return chain(
        _needs(k, f"center_by_pkpo_leave_one_out({k})"),
        baseline.center_by_leave_one_out(),
        stateless(scale),
        _silence_short_groups(k),
    )


def assign_pass_at_k_training(
    k: int, *, epsilon: ArrayLike = 0.0
) -> AdvantageTransform:
    """A_S = (1 - R) / s, A_F = (1 - R - b) / s: GRPO over all subsets of size k.

    R = 1 - C(n - c, k) / C(n, k) is the mean reward of a subset, s = sqrt(R (1 - R)) +
    epsilon its deviation; a sample gets the mean over the subsets that contain it.
    Balanced, and 0 once every subset contains a success (n - c < k).

    Args:
      k: subset size.
      epsilon: added to the deviation; the authors' code has 1e-6.

    Source: Pass@k Training (PAPER: authors' code, RUCAIBox/Passk_Training).
    """
    check.count("k", k)
    check.number("epsilon", epsilon, low=0)

    def miss(g):
        return all_from(g.n - g.c, g.n, k)

    def deviation(g):
        return jnp.sqrt(miss(g) * (1 - miss(g))) + epsilon

    return _by_class(
        "assign_pass_at_k_training",
        k,
        lambda g: numerics.safe_divide(miss(g), deviation(g)),
        lambda g: numerics.safe_divide(
            miss(g) - _miss_beside_failure(g, k), deviation(g)
        ),
    )


def assign_lead_of_best() -> AdvantageTransform:
    """The best sample gets its lead over the second best, the others 0: pass@n.

    Each sample's share in the group's best reward, max(r) - max(r without it). For 0
    and 1 it is 1 for an only success. Some divide by the group's std: put
    `scale_by_group_std()` before it.

    Source: arXiv:2503.19595 (SECONDARY: verl `grpo_passk`).
    """

    def apply(credit, rollout):
        del rollout
        baseline.require_group(credit, 2, "assign_lead_of_best()")
        lowest = jnp.min(
            jnp.where(credit.member, credit.advantage, jnp.inf), 1, keepdims=True
        )
        a = jnp.where(credit.member, credit.advantage, lowest)
        ranked = jnp.sort(a, 1)
        best, second = ranked[:, -1:], ranked[:, -2:-1]
        lead = jnp.where(a == best, best - second, 0.0)
        return credit.replace(advantage=jnp.where(credit.member, lead, 0.0))

    return stateless(apply)
