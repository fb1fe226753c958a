"""Group baselines and scales: static advantages as steps of a chain.

Statistics run over the members of a group (axis G, rank 3: [P, G, 1]); rows that are
no members get the same baseline but do not shape it. `r` is the advantage as it comes
in, usually the reward; a group whose members are all equal ends up at exactly 0.
"""

import jax
import jax.numpy as jnp

from rljax import numerics
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Credit, Rollout


def require_group(credit: Credit, num_samples: int, name: str) -> None:
    """Raises unless groups have at least `num_samples` samples; static."""
    shape = credit.advantage.shape
    if shape[1] < num_samples:
        raise ValueError(
            f"{name} needs at least {num_samples} samples per prompt, got an advantage"
            f" of shape {shape} ([P, G, 1]); raise num_samples."
        )


def group_mean(credit: Credit) -> jax.Array:
    """f32[P, 1, 1 or T]: mean advantage over the members of each group."""
    return numerics.masked_mean(credit.advantage, credit.member, 1, keepdims=True)


def solve_rate(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[P, 1, 1]: mean reward, as given by the verifier, over each group's members.

    The `p` of the difficulty axis; for rewards in [0, 1].
    """
    reward = rollout.verdict.reward[..., None]
    return numerics.masked_mean(reward, credit.member, 1, keepdims=True)


def _equal_groups(credit: Credit) -> jax.Array:
    # Exact equality, not a threshold on the variance: float noise in a mean must not
    # become an advantage once it is divided by its own standard deviation.
    a, m = credit.advantage, credit.member
    high = jnp.max(jnp.where(m, a, -jnp.inf), 1, keepdims=True)
    low = jnp.min(jnp.where(m, a, jnp.inf), 1, keepdims=True)
    return high <= low


def center_by_group() -> AdvantageTransform:
    """r - mean(r): the mean baseline (Dr. GRPO, arXiv:2503.20783)."""

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "center_by_group()")
        centred = jnp.where(
            _equal_groups(credit), 0.0, credit.advantage - group_mean(credit)
        )
        return credit.replace(advantage=centred)

    return stateless(apply)


def scale_by_group_std(*, ddof: int = 0, epsilon: float = 0.0) -> AdvantageTransform:
    """A / (std(A) + epsilon); groups of equal advantages become 0.

    Args:
      ddof: 0 for the population standard deviation, 1 for the sample one.
      epsilon: added to the standard deviation, in units of the reward.

    Variants: TRL ddof 1 + 1e-4, verl and Tunix ddof 1 + 1e-6, EasyDeL ddof 0 + 1e-4;
      at G = 8 the ddof alone is a factor of 1.069. Here ddof 0 and no epsilon, the
      formula of arXiv:2402.03300; equal groups are found exactly, so none is needed.
    """

    def apply(credit, rollout):
        del rollout
        require_group(credit, ddof + 1, "scale_by_group_std()")
        var = numerics.masked_var(
            credit.advantage, credit.member, 1, keepdims=True, ddof=ddof
        )
        equal = _equal_groups(credit)
        scaled = credit.advantage / (jnp.sqrt(jnp.where(equal, 1.0, var)) + epsilon)
        return credit.replace(advantage=jnp.where(equal, 0.0, scaled))

    return stateless(apply)


def leave_one_out() -> AdvantageTransform:
    """r - mean of the others' r = n/(n-1) (r - mean(r)) (RLOO, arXiv:2402.14740)."""

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "leave_one_out()")
        n = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.float32)
        centred = jnp.where(
            _equal_groups(credit), 0.0, credit.advantage - group_mean(credit)
        )
        return credit.replace(advantage=centred * numerics.safe_divide(n, n - 1))

    return stateless(apply)


def focal(exponent: jax.typing.ArrayLike) -> AdvantageTransform:
    """A * (1 - p)^exponent, p the group's solve rate: focus on hard prompts.

    FADE's difficulty factor with exponent alpha - 1; F-GRPO's with gamma.
    0^0 counts as 1. Reads `rollout.verdict.reward`, in [0, 1].
    """

    def apply(credit, rollout):
        return credit.replace(
            advantage=credit.advantage
            * focal_factor(solve_rate(credit, rollout), exponent)
        )

    return stateless(apply)


def focal_factor(p: jax.Array, exponent: jax.typing.ArrayLike) -> jax.Array:
    """(1 - p)^exponent with 0^0 = 1."""
    q = jnp.maximum(1 - p, 0.0)
    safe = jnp.where(q > 0, q, 1.0) ** exponent
    return jnp.where(q > 0, safe, jnp.where(jnp.asarray(exponent) == 0, 1.0, 0.0))


def scale_negative(factor: jax.typing.ArrayLike) -> AdvantageTransform:
    """Multiplies negative advantages: the sign axis (AsymGRPO with factor 1/delta)."""
    return stateless(
        lambda c, r: c.replace(
            advantage=jnp.where(c.advantage < 0, c.advantage * factor, c.advantage)
        )
    )
