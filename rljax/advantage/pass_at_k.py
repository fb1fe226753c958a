"""Advantages whose objective is pass@k, from one group of n >= k samples.

All are made of ratios of binomial coefficients: the probabilities that a subset of the
group, drawn without replacement, contains no success. c of n members are correct.

| transform | objective on-policy | pushes |
|---|---|---|
| `assign_pkpo` | pass@k | all up, successes more |
| `assign_pkpo_minus_one` | pass@k | only successes, up |
| `center_by_pkpo_leave_one_out` | near pass@k / k for large n | balanced |
| `assign_pass_at_k_training` | pass@k normalised by its deviation | balanced |
| `assign_lead_of_best` | pass@n | only the single success, up |

`assign_pkpo`, `assign_pkpo_minus_one` and `assign_pass_at_k_training` replace the
advantage and read only `verdict.correct`; the other two also read the reward. Without
sampling error pass@k is the power objective of order k: `center_by_group()` and
`scale_by_focal_factor(k - 1)`.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage import assign, baseline, solve_rate
from rljax.advantage.algebra import AdvantageTransform, chain, stateless
from rljax.advantage.solve_rate import Group


def all_from(part: jax.Array, total: jax.Array, k: int) -> jax.Array:
    """C(part, k) / C(total, k): probability that k of `total` all come from `part`.

    Args:
      part, total: f32 counts of any shape, part <= total.
      k: subset size, >= 0; if k > total there is no subset and the result is 0.
    """
    result = jnp.ones(jnp.broadcast_shapes(part.shape, total.shape), jnp.float32)
    for drawn in range(k):
        left = jnp.maximum(total - drawn, 0.0)
        result *= numerics.safe_divide(jnp.maximum(part - drawn, 0.0), left)
    return result


def _require_samples(k: int, name: str) -> AdvantageTransform:
    def apply(credit, rollout):
        del rollout
        baseline.require_group(credit, k, name)
        return credit

    return stateless(apply)


def _silence_short_groups(k: int) -> AdvantageTransform:
    """A = 0 in groups with fewer than k members (after verifier failures)."""

    def apply(credit, rollout):
        enough = solve_rate.by_correct(rollout, credit.member).n >= k
        return credit.replace(advantage=jnp.where(enough, credit.advantage, 0.0))

    return stateless(apply)


def _miss_beside_success(group: Group, k: int) -> jax.Array:
    """a: probability that k - 1 other members all fail, for a correct sample."""
    return all_from(group.n - group.c, group.n - 1, k - 1)


def _miss_beside_failure(group: Group, k: int) -> jax.Array:
    """b: probability that k - 1 other members all fail, for a failed sample."""
    return all_from(group.n - group.c - 1, group.n - 1, k - 1)


def _by_class(name: str, k: int, success_fn, failure_fn) -> AdvantageTransform:
    assigned = assign.assign_by_class(success_fn, failure_fn)
    required = _require_samples(k, f"{name}({k})")
    return chain(required, assigned, _silence_short_groups(k))


def assign_pkpo(k: int) -> AdvantageTransform:
    """A_S = k, A_F = k (1 - b): unbiased gradient of pass@k, without a baseline.

    This is k times the mean of max(r) over the subsets of size k that contain the
    sample; b is the probability that k - 1 other members all fail. Failures are pushed
    up as well, and a solved group still has advantages.

    Args:
      k: subset size, at least 1 and at most G.

    Source: PKPO, arXiv:2505.15201 (SECONDARY; here checked by enumerating subsets).
    """
    check.count("k", k)
    return _by_class(
        "assign_pkpo", k, lambda g: k, lambda g: k * (1 - _miss_beside_failure(g, k))
    )


def assign_pkpo_minus_one(k: int) -> AdvantageTransform:
    """A_S = k a, A_F = 0: each subset's max minus the max without the sample.

    a is the probability that k - 1 other members all fail.

    Args:
      k: subset size, at least 1 and at most G.

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
    """A = a (r - mean of the others): RLOO times the probability that others fail.

    a counts the sample among the successes. So this is near the gradient of pass@k / k
    only for large groups; at n = 8, k = 4, p = 1/4 its slope is .482 instead of .422.

    Args:
      k: subset size, at least 1 and at most G.

    Source: tajwarfahim/maxrl (SECONDARY code).
    """
    check.count("k", k)

    def scale(credit, rollout):
        factor = _miss_beside_success(solve_rate.by_correct(rollout, credit.member), k)
        return credit.replace(advantage=credit.advantage * factor)

    return chain(
        _require_samples(k, f"center_by_pkpo_leave_one_out({k})"),
        baseline.center_by_leave_one_out(),
        stateless(scale),
        _silence_short_groups(k),
    )


def assign_pass_at_k_training(
    k: int, *, epsilon: ArrayLike = 0.0
) -> AdvantageTransform:
    """A_S = (1 - R) / s, A_F = (1 - R - b) / s: GRPO over all subsets of size k.

    R = 1 - C(n - c, k) / C(n, k) is the mean reward of the subsets,
    s = sqrt(R (1 - R)) + epsilon its standard deviation. A sample gets the mean
    advantage of the subsets that contain it. Advantages are balanced, and 0 if every
    subset contains a success (n - c < k).

    Args:
      k: subset size, at least 1 and at most G.
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

    A = max(r) - max(r without the sample). With rewards 0 and 1 only a single success
    gets 1. To divide by the group's std, as some do, put `scale_by_group_std()` before.

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
