"""Group baselines and scales: static advantages as steps of a chain.

Statistics run over the members of a group (axis G, rank 3: [P, G, 1]); rows that are
no members get the same baseline but do not shape it. `r` is the advantage as it comes
in, usually the reward; a group whose members are all equal ends up at exactly 0 unless
its baseline comes from elsewhere (a constant, a greedy sample).
"""

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage import solve_rate
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.metric import Fault
from rljax.types import Credit, Source


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


def equal_groups(credit: Credit) -> jax.Array:
    """bool[P, 1, 1 or T]: groups whose members all have the same advantage."""
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
        # Only members: a row outside may well differ from a group of equals.
        equal = equal_groups(credit) & credit.member
        centred = jnp.where(equal, 0.0, credit.advantage - group_mean(credit))
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
    check.count("ddof", ddof, low=0)
    check.number("epsilon", epsilon, low=0)

    def apply(credit, rollout):
        del rollout
        require_group(credit, ddof + 1, "scale_by_group_std()")
        var = numerics.masked_var(
            credit.advantage, credit.member, 1, keepdims=True, ddof=ddof
        )
        equal = equal_groups(credit)
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
            equal_groups(credit), 0.0, credit.advantage - group_mean(credit)
        )
        return credit.replace(advantage=centred * numerics.safe_divide(n, n - 1))

    return stateless(apply)


def focal(exponent: jax.typing.ArrayLike) -> AdvantageTransform:
    """A * (1 - p)^exponent, p the group's solve rate: focus on hard prompts.

    FADE's difficulty factor with exponent alpha - 1; F-GRPO's with gamma.
    0^0 counts as 1. Reads `rollout.verdict.reward`, in [0, 1].
    """
    check.number("exponent", exponent)

    def apply(credit, rollout):
        p = solve_rate.by_reward(rollout, credit.member).p
        return credit.replace(advantage=credit.advantage * focal_factor(p, exponent))

    return stateless(apply)


def focal_factor(p: jax.Array, exponent: jax.typing.ArrayLike) -> jax.Array:
    """(1 - p)^exponent with 0^0 = 1."""
    q = jnp.maximum(1 - p, 0.0)
    safe = jnp.where(q > 0, q, 1.0) ** exponent
    return jnp.where(q > 0, safe, jnp.where(jnp.asarray(exponent) == 0, 1.0, 0.0))


def scale_negative(factor: jax.typing.ArrayLike) -> AdvantageTransform:
    """Multiplies negative advantages: the sign axis (AsymGRPO with factor 1/delta)."""
    check.number("factor", factor, low=0)
    return stateless(
        lambda c, r: c.replace(
            advantage=jnp.where(c.advantage < 0, c.advantage * factor, c.advantage)
        )
    )


def center_by(constant: jax.typing.ArrayLike) -> AdvantageTransform:
    """r - constant: one baseline for all prompts (REINFORCE, Williams 1992)."""
    check.number("constant", constant)
    return stateless(lambda c, r: c.replace(advantage=c.advantage - constant))


def center_by_greedy() -> AdvantageTransform:
    """r - reward of the prompt's greedy sample, which itself takes no further part.

    Greedy rows (`samples.source == Source.GREEDY`) lose membership and weight; several
    of one prompt give their mean. A prompt without one keeps r and is counted in
    `fault/greedy_missing`.

    Source: ReMax, arXiv:2310.10505 (SECONDARY: third-party code).
    """

    def apply(credit, rollout):
        greedy = (rollout.samples.source == Source.GREEDY)[..., None]
        known = greedy & credit.member
        base = numerics.masked_mean(credit.advantage, known, 1, keepdims=True)
        lacking = jnp.any(credit.member, 1) & ~jnp.any(known, 1)
        return credit.replace(
            advantage=credit.advantage - base,
            weight=jnp.where(greedy, 0.0, credit.weight),
            member=credit.member & ~greedy,
        ).log(**{"fault/greedy_missing": Fault(jnp.sum(lacking))})

    return stateless(apply)


def center_by_length() -> AdvantageTransform:
    """r - sum(l r) / sum(l), l the policy tokens of a row: the optimal baseline.

    Balanced in tokens: sum(l A) = 0 over a group. Equal lengths give the group mean. A
    group of one member has baseline 0, as in verl.

    Source: OPO, arXiv:2505.23585 (SECONDARY: verl `opo`, merged by the authors).
    """

    def apply(credit, rollout):
        length = rollout.samples.length[..., None].astype(jnp.float32)
        length = jnp.where(credit.member, length, 0.0)
        total = jnp.sum(length, 1, keepdims=True)
        weighted = jnp.sum(length * credit.advantage, 1, keepdims=True)
        alone = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.int32) <= 1
        base = jnp.where(alone, 0.0, numerics.safe_divide(weighted, total))
        centred = jnp.where(equal_groups(credit) & ~alone, 0.0, credit.advantage - base)
        return credit.replace(advantage=centred)

    return stateless(apply)


def center_by_quantile(level: jax.typing.ArrayLike) -> AdvantageTransform:
    """r - Q, Q = inf{x : F(x) >= level} of the group's rewards: a gate for 0 and 1.

    Q = 0 while p <= 1 - level, so that only successes count; else Q = 1 and only
    failures do. The inverted-cdf quantile it must be: an interpolated one has no gate.

    Args:
      level: K, a fraction in (0, 1).

    Source: QAE, arXiv:2509.22611 (the gate SECONDARY, from the abstract; the formula
      RECONSTRUCTED).
    """
    check.number("level", level, above=0, below=1)

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "center_by_quantile()")
        ranked = jnp.sort(jnp.where(credit.member, credit.advantage, jnp.inf), 1)
        n = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.float32)
        # 1e-5: level * n is whole where it is so in exact arithmetic.
        index = jnp.maximum(jnp.ceil(level * n - 1e-5), 1.0).astype(jnp.int32) - 1
        quantile = jnp.take_along_axis(ranked, index, 1)
        quantile = jnp.where(n > 0, quantile, 0.0)
        return credit.replace(advantage=credit.advantage - quantile)

    return stateless(apply)


def scale_by_group_norm(order: jax.typing.ArrayLike) -> AdvantageTransform:
    """A / (mean |A|^order)^(1 / order); groups of equal advantages become 0.

    After a centring, order 2 is `scale_by_group_std()`, 1 the mean absolute deviation,
    infinity (`float("inf")`) the largest deviation.

    Args:
      order: s > 0.
    """
    check.number("order", order, above=0, high=float("inf"))

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "scale_by_group_norm()")
        size = jnp.where(credit.member, jnp.abs(credit.advantage), 0.0)
        top = jnp.max(size, 1, keepdims=True)
        # Relative to the largest, so that no power overflows: x^inf is then 0 or 1.
        power = numerics.safe_divide(size, top) ** order
        mean = numerics.masked_mean(power, credit.member, 1, keepdims=True)
        norm = jnp.where(equal_groups(credit), 1.0, top * mean ** (1 / order))
        scaled = numerics.safe_divide(credit.advantage, norm)
        return credit.replace(advantage=jnp.where(equal_groups(credit), 0.0, scaled))

    return stateless(apply)
