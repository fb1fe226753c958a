"""Filters: which rows and prompts learn, and which rows count in statistics.

Most belong into `weighting=` and set weights to 0. If a filter is placed before the
reduction, the divisor counts only the kept rows; after the reduction it does not change
the divisor. Dropped rows still count in the statistics of their group, which were
computed before.

A mixed group holds sampled rows, demonstrations and teacher answers side by side;
`samples.source` says which row is which.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check
from rljax.advantage import solve_rate
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Rollout, Source, require, require_stored_answers


def keep_rows(fn: Callable[[Rollout], jax.Array]) -> AdvantageTransform:
    """Keeps the rows where `fn(rollout)`, bool[P, G], holds; others get weight 0."""
    check.function("fn", fn, "rollout")
    return stateless(
        lambda c, r: c.replace(weight=jnp.where(fn(r)[..., None], c.weight, 0.0))
    )


def keep_correct() -> AdvantageTransform:
    """Keeps successes only, by `verdict.correct`."""
    return keep_rows(lambda rollout: rollout.verdict.correct)


def keep_incorrect() -> AdvantageTransform:
    """Keeps failures only, by `verdict.correct`."""
    return keep_rows(lambda rollout: ~rollout.verdict.correct)


def drop_truncated() -> AdvantageTransform:
    """Weight 0 for samples that were cut off at T tokens (DAPO's overlong filtering).

    Their rewards still count in their group's statistics.
    """
    return keep_rows(lambda rollout: rollout.samples.finished)


def drop_equal_groups() -> AdvantageTransform:
    """Weight 0 for groups that are all right or all wrong (DAPO's dynamic sampling).

    It keeps groups with 0 < #correct < G; placed before a reduction, the divisor counts
    only these. The paper samples until the batch is full of such groups; for that see
    `rljax.learn.dynamic_sampling`.

    Returns:
      A stateless transform; reads `verdict.correct`, logs `dropped_share`, the fraction
      of groups dropped.

    Source: arXiv:2503.14476, eq. (11) (PAPER).
    """

    def apply(credit, rollout):
        mixed = solve_rate.by_correct(rollout, credit.member).mixed
        weight = jnp.where(mixed, credit.weight, 0.0)
        return credit.replace(weight=weight).log(dropped_share=jnp.mean(~mixed))

    return stateless(apply)


def keep_source(*sources: int) -> AdvantageTransform:
    """Only rows of these sources learn; others get weight 0.

    It changes `weight` alone: all rows still count in the statistics of their group.

    Args:
      *sources: values of `Source`, such as `Source.OWN`.
    """
    _require_sources(sources)
    return keep_rows(lambda rollout: of_source(rollout, *sources))


def keep_stored() -> AdvantageTransform:
    """Only demonstrations and teacher answers learn; logs their share of the rows.

    Raises:
      ValueError: when traced, if the prompts carry neither; the term would silently be
        empty.
    """

    def apply(credit, rollout):
        require_stored_answers(rollout.prompts, "this term learns from")
        rows = is_stored(rollout)
        weight = jnp.where(rows[..., None], credit.weight, 0.0)
        credit = credit.replace(weight=weight)
        return credit.log(stored_share=jnp.mean(rows, dtype=jnp.float32))

    return stateless(apply)


def restrict_members(*sources: int) -> AdvantageTransform:
    """Only rows of these sources count in the statistics of their group.

    Other rows still get the group's baseline. Place it first in an advantage chain.

    Args:
      *sources: values of `Source`, such as `Source.OWN`.
    """
    _require_sources(sources)
    return stateless(
        lambda c, r: c.replace(member=c.member & of_source(r, *sources)[..., None])
    )


def keep_prompts(select_fn: Callable[[jax.Array], jax.Array]) -> AdvantageTransform:
    """Only prompts learn that are selected by their number of correct own samples.

    HPT's gate is `keep_prompts(lambda solved: solved <= 0)` before the reduction of an
    imitation term, and the complement in the reinforcement term.

    Args:
      select_fn: i32[P] number of correct rows with `Source.OWN` -> bool[P].

    Returns:
      A stateless transform; reads `rollout.verdict`, changes `weight`, logs
      `kept_prompts`, the share of prompts selected.

    Source: arXiv:2509.04419; code TsinghuaC3I/Unify-Post-Training (PAPER).
    """
    check.function("select_fn", select_fn, "solved")

    def apply(credit, rollout):
        own = of_source(rollout, Source.OWN)[..., None] & solve_rate.members(rollout)
        solved = solve_rate.by_correct(rollout, own).c[:, 0, 0].astype(jnp.int32)
        kept = select_fn(solved)[:, None, None]
        credit = credit.replace(weight=jnp.where(kept, credit.weight, 0.0))
        return credit.log(kept_prompts=jnp.mean(kept, dtype=jnp.float32))

    return stateless(apply)


def of_source(rollout: Rollout, *sources: int) -> jax.Array:
    """bool[P, G]: rows that came from one of these sources."""
    _require_sources(sources)
    return jnp.stack([rollout.samples.source == s for s in sources]).any(0)


def is_stored(rollout: Rollout) -> jax.Array:
    """bool[P, G]: rows that are demonstrations or teacher answers."""
    return of_source(rollout, Source.DEMONSTRATION, Source.TEACHER)


def is_hint(rollout: Rollout) -> jax.Array:
    """bool[P, G]: the rows that hold hints (`rljax.rollout.hint`).

    Raises:
      ValueError: when traced, if the prompts carry no hints.
    """
    how = "wrap the act in reveal_hints(act, cosine_reveal())"
    require(rollout.prompts.data, "hint_length", how)
    return of_source(rollout, Source.DEMONSTRATION)


def _require_sources(sources):
    for source in sources:
        check.count("sources", source, low=0, high=3)
    if not sources:
        raise ValueError(
            "sources must name at least one source, got none; pass one, such as"
            " Source.OWN."
        )
