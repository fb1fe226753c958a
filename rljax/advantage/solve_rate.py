"""The solve rate of a group: its one definition.

Advantages, filters, dynamic sampling, masses and metrics all use it. A row whose
verifier failed is neither right nor wrong, and its verdict is never read:
[right, right, verifier failed] is a solved group. Successes are counted by
`verdict.correct`, or by `verdict.reward`, where a reward between 0 and 1 counts as a
fraction of a success. For rewards 0 and 1 both give the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import numerics
from rljax.types import NotMeasured, Rollout, Verdict


class Group(NamedTuple):
    """Counts of each group of samples, f32[P, 1, 1]."""

    c: jax.Array  # successes among the members, count
    n: jax.Array  # members, count

    @property
    def p(self) -> jax.Array:
        """Solve rate c / n; 0 without members."""
        return numerics.safe_divide(self.c, self.n)

    @property
    def q(self) -> jax.Array:
        """Failure rate (n - c) / n; 0 without members."""
        return numerics.safe_divide(self.n - self.c, self.n)

    @property
    def mixed(self) -> jax.Array:
        """bool[P, 1, 1]: neither all right nor all wrong; False without members."""
        return (self.c > 0) & (self.c < self.n)


def of(success: jax.Array, member: jax.Array) -> Group:
    """Counts over each group's members.

    Args:
      success: f32 or bool[P, G, 1]; read for members only, others may be NaN.
      member: bool[P, G, 1].
    """
    success = jnp.where(member, success.astype(jnp.float32), 0.0)
    return Group(
        jnp.sum(success, 1, keepdims=True),
        jnp.sum(member, 1, keepdims=True, dtype=jnp.float32),
    )


def by_correct(rollout: Rollout, member: jax.Array | None = None) -> Group:
    """Counts successes by `verdict.correct`; `member` defaults to all `members`."""
    member = members(rollout) if member is None else member
    return of(rollout.verdict.correct[..., None], member)


def by_reward(rollout: Rollout, member: jax.Array | None = None) -> Group:
    """Counts successes by `verdict.reward`, for rewards in [0, 1]."""
    member = members(rollout) if member is None else member
    return of(rollout.verdict.reward[..., None], member)


def members(rollout: Rollout) -> jax.Array:
    """bool[P, G, 1]: rows with at least one token whose verifier did not fail.

    Without a verdict, all rows with a token. (Short groups have rows without tokens.)
    """
    filled = jnp.any(rollout.samples.mask, -1, keepdims=True)
    try:
        return filled & ~rollout.verdict.failed[..., None]
    except NotMeasured:
        return filled


def only_verified(rollout: Rollout) -> Rollout:
    """The rollout with reward 0 and `correct` False where the verifier failed.

    A failed verifier may have left anything there, even NaN; no transform must see it.
    """
    if not isinstance(rollout.verdict, Verdict):
        return rollout
    verdict = rollout.verdict
    return rollout.replace(
        verdict=verdict.replace(
            reward=jnp.where(verdict.failed, 0.0, verdict.reward),
            correct=verdict.correct & ~verdict.failed,
        )
    )
