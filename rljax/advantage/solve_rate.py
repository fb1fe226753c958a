"""One solve rate: what the verified samples of a group say about its prompt.

A row whose verifier failed is neither right nor wrong, and its verdict is read nowhere:
[right, right, verifier failed] is a solved group. Advantages, filters, dynamic
sampling, masses and metrics all count here. Rewards between 0 and 1 are counted as
successes in part, so that for rewards 0 and 1 both counts are the same number.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import numerics
from rljax.types import NotMeasured, Rollout, Verdict


class Group(NamedTuple):
    """What a group of samples says about its prompt; each f32[P, 1, 1]."""

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
      success: f32 or bool[P, G, 1]; read for members alone, others' may be NaN.
      member: bool[P, G, 1].
    """
    success = jnp.where(member, success.astype(jnp.float32), 0.0)
    return Group(
        jnp.sum(success, 1, keepdims=True),
        jnp.sum(member, 1, keepdims=True, dtype=jnp.float32),
    )


def by_correct(rollout: Rollout, member: jax.Array | None = None) -> Group:
    """Successes by `verdict.correct`; `member` is `members(rollout)` by default."""
    member = members(rollout) if member is None else member
    return of(rollout.verdict.correct[..., None], member)


def by_reward(rollout: Rollout, member: jax.Array | None = None) -> Group:
    """Successes in units of `verdict.reward`, for rewards in [0, 1]."""
    member = members(rollout) if member is None else member
    return of(rollout.verdict.reward[..., None], member)


def members(rollout: Rollout) -> jax.Array:
    """bool[P, G, 1]: verified rows with any token (short groups have rows without).

    Without a verdict every row with a token.
    """
    filled = jnp.any(rollout.samples.mask, -1, keepdims=True)
    try:
        return filled & ~rollout.verdict.failed[..., None]
    except NotMeasured:
        return filled


def only_verified(rollout: Rollout) -> Rollout:
    """The rollout with verdicts of failed verifications replaced: 0 and not correct.

    What a verifier that failed has written there, NaN perhaps, reaches no transform.
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
