"""Scales: factors that multiply the advantages of a group.

A factor depends on the spread of the group's rewards, on its solve rate p, on the sign
of the advantage, or on the solve rates of the batch and of past batches.
Symbols: q = 1 - p; B, the mean solve rate of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage import solve_rate
from rljax.advantage.algebra import AdvantageTransform, chain, stateless
from rljax.advantage.baseline import center_by_group, equal_groups, require_group
from rljax.metric import Fault


def scale_by_group_std(
    *, ddof: int = 0, epsilon: ArrayLike = 0.0
) -> AdvantageTransform:
    """A / (std(A) + epsilon); groups of equal advantages become 0.

    Args:
      ddof: 0 for the population standard deviation, 1 for the sample one.
      epsilon: added to the standard deviation, reward units.

    Variants: TRL has ddof 1 and epsilon 1e-4, verl and Tunix 1 and 1e-6, EasyDeL 0 and
      1e-4; at G = 8 the ddof alone is a factor of 1.069. The defaults are the formula
      of arXiv:2402.03300. No epsilon is needed, as equal groups are detected exactly.
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


def normalise_by_group(
    *, ddof: int = 1, epsilon: ArrayLike = 1e-6
) -> AdvantageTransform:
    """(r - mean) / (std + epsilon) of the group; groups of equal rewards become 0.

    Most papers of GRPO's family do not state the convention and were run on verl, so
    the defaults are verl's.

    Args:
      ddof: 1 for the sample standard deviation, 0 for the population one.
      epsilon: added to the standard deviation, reward units.

    Source: arXiv:2402.03300, eq. (3); defaults verl (SECONDARY).
    """
    return chain(center_by_group(), scale_by_group_std(ddof=ddof, epsilon=epsilon))


def scale_by_group_norm(order: ArrayLike) -> AdvantageTransform:
    """A / (mean |A|^order)^(1 / order); groups of equal advantages become 0.

    After centring, order 2 divides by the standard deviation, 1 by the mean absolute
    deviation, `float("inf")` by the largest deviation.

    Args:
      order: > 0, infinity included.
    """
    check.number("order", order, above=0, high=float("inf"))

    def apply(credit, rollout):
        del rollout
        require_group(credit, 2, "scale_by_group_norm()")
        size = jnp.where(credit.member, jnp.abs(credit.advantage), 0.0)
        top = jnp.max(size, 1, keepdims=True)
        # Divided by the largest, so that no power overflows; x^inf is then 0 or 1.
        power = numerics.safe_divide(size, top) ** order
        mean = numerics.masked_mean(power, credit.member, 1, keepdims=True)
        norm = jnp.where(equal_groups(credit), 1.0, top * mean ** (1 / order))
        scaled = numerics.safe_divide(credit.advantage, norm)
        return credit.replace(advantage=jnp.where(equal_groups(credit), 0.0, scaled))

    return stateless(apply)


def scale_by_rate(fn: Callable[[jax.Array], jax.Array]) -> AdvantageTransform:
    """A * fn(p), p the mean of the group's rewards, which must lie in [0, 1].

    An infinite factor counts as 0. So `lambda p: 1 / p` is safe: at p = 0 no member has
    a nonzero centred reward.

    Args:
      fn: p f32[P, 1, 1] -> f32[P, 1, 1] or a number.

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


def scale_by_focal_factor(exponent: ArrayLike) -> AdvantageTransform:
    """A * (1 - p)^exponent, p the group's solve rate: focus on hard prompts.

    FADE's difficulty factor has exponent alpha - 1, F-GRPO's gamma. 0^0 counts as 1.

    Returns:
      A stateless transform; reads `verdict.reward`, which must lie in [0, 1].
    """
    check.number("exponent", exponent)

    def apply(credit, rollout):
        p = solve_rate.by_reward(rollout, credit.member).p
        return credit.replace(advantage=credit.advantage * focal_factor(p, exponent))

    return stateless(apply)


def focal_factor(p: jax.Array, exponent: ArrayLike) -> jax.Array:
    """(1 - p)^exponent with 0^0 = 1."""
    q = jnp.maximum(1 - p, 0.0)
    safe = jnp.where(q > 0, q, 1.0) ** exponent
    return jnp.where(q > 0, safe, jnp.where(jnp.asarray(exponent) == 0, 1.0, 0.0))


def scale_negative(factor: ArrayLike) -> AdvantageTransform:
    """Multiplies negative advantages by a factor >= 0 (AsymGRPO: 1 / delta)."""
    check.number("factor", factor, low=0)
    return stateless(
        lambda c, r: c.replace(
            advantage=jnp.where(c.advantage < 0, c.advantage * factor, c.advantage)
        )
    )


def scale_by_mixed_share() -> AdvantageTransform:
    """A * groups / mixed groups, where a group is mixed if its advantages differ.

    A mean over all groups thereby becomes a mean over the mixed ones. Without any mixed
    group the factor is 1. Logs `mixed_share`, the fraction of groups that are mixed.

    Source: GPG's alpha, arXiv:2504.02546; code AMAP-ML/GPG (PAPER; the factor of 1
      RECONSTRUCTED).
    Variants: verl's `gpg` has responses / responses of nonzero score, another quantity;
      R1-V also divides its loss by the share + 1e-5.
    """

    def apply(credit, rollout):
        del rollout
        known = jnp.any(credit.member, 1, keepdims=True)
        mixed = known & ~equal_groups(credit)
        groups = jnp.sum(known, dtype=jnp.float32)
        count = jnp.sum(jnp.any(mixed, -1), dtype=jnp.float32)
        factor = jnp.where(count > 0, numerics.safe_divide(groups, count), 1.0)
        share = numerics.safe_divide(count, groups)
        return credit.replace(advantage=credit.advantage * factor).log(
            mixed_share=share
        )

    return stateless(apply)


def anneal_by_batch_rate(k0: ArrayLike = 1.0) -> AdvantageTransform:
    """A h, and where A > 0 also times min(1, B / k0); B is the batch's solve rate.

        h = 1/2 ((1 - B) / (1 - sqrt p) + B / sqrt p)

    As B grows, the focus moves from easy prompts to hard ones, and from failures to a
    balance of successes and failures.

    Args:
      k0: batch solve rate from which on both are balanced; 1 (mathematics) or 0.5.

    Source: A-GRAE (PAPER: authors' code, Yu7-code/A-GRAE).
    """
    check.number("k0", k0, above=0)

    def apply(credit, rollout):
        p = solve_rate.by_reward(rollout, credit.member).p
        known = jnp.any(credit.member, 1, keepdims=True)
        batch = numerics.masked_mean(p, known)
        root = jnp.sqrt(jnp.maximum(p, 0.0))
        easy = numerics.safe_divide(1 - batch, 1 - root)
        hard = numerics.safe_divide(batch, root)
        a = credit.advantage * 0.5 * (easy + hard)
        a = jnp.where(a > 0, a * jnp.minimum(1.0, batch / k0), a)
        return credit.replace(advantage=a).log(batch_rate=batch)

    return stateless(apply)


class HistoryState(NamedTuple):
    """Histograms of the last `window` batches, in a ring buffer.

    counts: i32[window, G + 1] groups per bin.
    step: i32[] batches so far.
    """

    counts: jax.Array
    step: jax.Array


def scale_by_history(num_samples: int, *, window: int = 10) -> AdvantageTransform:
    """A * f(p) / F(p), f the histogram of solve rates in (0, 1) of past batches.

    F is the inclusive cumulative sum of f, so the factor is near 1 where all lower
    rates are rare. The bin of p is floor(p (G + 1)), computed in integers. A batch
    enters the history after its own factors are computed, so a rate that was not seen
    before has factor 0. While the history is empty (in the first batch, or until some
    group is mixed) a batch uses its own histogram. Solve rates 0 and 1 never enter the
    history and have factor 0.

    Args:
      num_samples: G, samples per prompt; the histogram has G + 1 bins.
      window: number of past batches in the histogram.

    Returns:
      A stateful transform; reads `verdict.correct`.

    Source: CurveRL, code zhyzmath/CurveRL (PAPER; the empty history RECONSTRUCTED).
    """
    check.count("num_samples", num_samples, low=2)
    check.count("window", window)

    def init():
        counts = jnp.zeros((window, num_samples + 1), jnp.int32)
        return HistoryState(counts, jnp.zeros((), jnp.int32))

    def update(credit, rollout, state):
        if credit.advantage.shape[1] != num_samples:
            raise ValueError(
                f"scale_by_history({num_samples}) needs num_samples = G, got an"
                f" advantage of shape {credit.advantage.shape} ([P, G, 1]); pass its G."
            )
        group = solve_rate.by_correct(rollout, credit.member)
        c, n = group.c.astype(jnp.int32), group.n.astype(jnp.int32)
        index = (c * (num_samples + 1)) // jnp.maximum(n, 1)
        bins = jnp.arange(num_samples + 1, dtype=jnp.int32)[None, None]
        chosen = (index == bins) & group.mixed  # [P, 1, G + 1]
        now = jnp.sum(chosen, (0, 1), dtype=jnp.int32)
        past = jnp.sum(state.counts, 0)
        past = jnp.where(jnp.sum(past) > 0, past, now).astype(jnp.float32)
        table = numerics.safe_divide(past, jnp.cumsum(past))
        factor = jnp.sum(jnp.where(chosen, table[None, None], 0.0), -1, keepdims=True)
        counts = state.counts.at[state.step % window].set(now)
        credit = credit.replace(advantage=credit.advantage * factor)
        return credit, HistoryState(counts, state.step + 1)

    return AdvantageTransform(init, update)
