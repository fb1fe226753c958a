"""Rows of different sources in one group: who counts, who learns, by which mean.

A mixed group holds rollouts beside demonstrations and teacher answers; `source` of
`samples` tells them apart. Restricting a term to some rows is a filter before its
reduction, so that a mean runs over rows of one kind alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage import solve_rate
from rljax.advantage.algebra import AdvantageTransform, chain, stateless
from rljax.advantage.row import keep_rows
from rljax.types import Rollout, Source, require


def of_source(rollout: Rollout, *sources: int) -> jax.Array:
    """bool[P, G]: rows that came from one of these sources."""
    _require_sources(sources)
    return jnp.stack([rollout.samples.source == s for s in sources]).any(0)


def _require_sources(sources):
    for source in sources:
        check.count("sources", source, low=0, high=3)
    if not sources:
        raise ValueError(
            "sources must name one, as a filter needs a source, got none; pass"
            " Source.OWN or so."
        )


def is_hint(rollout: Rollout) -> jax.Array:
    """bool[P, G]: the rows of hints (`rljax.rollout.hint`).

    Raises:
      ValueError: when traced, if the run gives no hints.
    """
    how = "wrap the act in reveal_hints(act, cosine_reveal())"
    require(rollout.prompts.data, "hint_length", how)
    return of_source(rollout, Source.DEMONSTRATION)


def is_stored(rollout: Rollout) -> jax.Array:
    """bool[P, G]: demonstrations and teacher answers."""
    return of_source(rollout, Source.DEMONSTRATION, Source.TEACHER)


def keep_source(*sources: int) -> AdvantageTransform:
    """Only rows of these sources learn: zeroes the weight of all others.

    Changes `weight` alone: all rows still count in the statistics of their group.
    """
    _require_sources(sources)
    return keep_rows(lambda rollout: of_source(rollout, *sources))


def keep_stored() -> AdvantageTransform:
    """Only demonstrations and teacher answers learn; logs `stored_share` of rows.

    Raises:
      ValueError: when traced, if the prompts carry neither, so that the term would
        silently be empty.
    """

    def apply(credit, rollout):
        check.stored_answers(rollout.prompts.data, "this term learns from")
        rows = is_stored(rollout)
        weight = jnp.where(rows[..., None], credit.weight, 0.0)
        credit = credit.replace(weight=weight)
        return credit.log(stored_share=jnp.mean(rows, dtype=jnp.float32))

    return stateless(apply)


def members_from(*sources: int) -> AdvantageTransform:
    """Only rows of these sources shape the statistics of their group.

    Others still get the group's baseline; use at the head of an advantage chain.
    """
    _require_sources(sources)
    return stateless(
        lambda c, r: c.replace(member=c.member & of_source(r, *sources)[..., None])
    )


def keep_prompts(select_fn: Callable[[jax.Array], jax.Array]) -> AdvantageTransform:
    """Only selected prompts learn, by how many of their own rollouts are correct.

    HPT's gate: `keep_prompts(lambda solved: solved <= 0)` before the mean of an
    imitation term, its complement in the reinforcement term.

    Args:
      select_fn: i32[P] counts -> bool[P].

    Returns:
      A stateless transform; reads `rollout.verdict`, changes `weight`, logs
      `kept_prompts`, the share of prompts selected.

    Source: arXiv:2509.04419; code TsinghuaC3I/Unify-Post-Training.
    """
    check.function("select_fn", select_fn, "solved")

    def apply(credit, rollout):
        own = of_source(rollout, Source.OWN)[..., None] & solve_rate.members(rollout)
        solved = solve_rate.by_correct(rollout, own).c[:, 0, 0].astype(jnp.int32)
        kept = select_fn(solved)[:, None, None]
        credit = credit.replace(weight=jnp.where(kept, credit.weight, 0.0))
        return credit.log(kept_prompts=jnp.mean(kept, dtype=jnp.float32))

    return stateless(apply)


def except_single(*transforms: AdvantageTransform) -> AdvantageTransform:
    """Applies transforms, but groups of one member keep the advantage they came with.

    verl's rule, which GFT inherits: of a single sample mean is 0 and deviation 1, so
    that a lone demonstration is learned with its reward as advantage.

    Args:
      *transforms: a chain that changes `advantage` alone.
    """
    inner = chain(*transforms)

    def update(credit, state, rollout):
        if credit.advantage.shape[1] == 1:
            return credit, state
        changed, state = inner.update(credit, state, rollout)
        single = jnp.sum(credit.member, 1, keepdims=True, dtype=jnp.int32) == 1
        kept = jnp.where(single, credit.advantage, changed.advantage)
        return changed.replace(advantage=kept), state

    return AdvantageTransform(inner.init, update)


def constant_sum(num_tokens: int) -> AdvantageTransform:
    """A reduction: the sum over all tokens of all rows, over a constant length.

    What LUFFY's and HPT's code do: unlike `constant_length` it is not divided by the
    number of rows, so it grows with the batch. Under Adam the difference is felt only
    against other terms and a gradient clip.

    Args:
      num_tokens: the constant, tokens.
    """
    check.number("num_tokens", num_tokens, above=0)
    return _reduction("constant_sum()", lambda w, rollout: w / num_tokens)


def weighted_sequence_mean(
    row_weight_fn: Callable[[Rollout], jax.Array],
) -> AdvantageTransform:
    """A reduction: the mean of each row's token mean, rows weighted by a number.

    sum_i w_i mean_t l_it / sum_i w_i; rows without tokens are not counted.

    Args:
      row_weight_fn: rollout -> broadcastable to f32[P, G], not negative.
    """
    check.function("row_weight_fn", row_weight_fn, "rollout")

    def share(w, rollout):
        row = jnp.sum(w, -1)
        given = jnp.where(row > 0, row_weight_fn(rollout), 0.0)
        given = given.astype(jnp.float32)
        per_token = numerics.safe_divide(given, row * jnp.sum(given))
        return w * per_token[..., None]

    return _reduction("weighted_sequence_mean()", share)


def _reduction(name: str, share: Callable[[jax.Array, Rollout], jax.Array]):
    def apply(credit, rollout):
        if credit.reduced:
            raise ValueError(
                f"{name} found weights that are reduced already; a term takes exactly"
                " one reduction: remove one from its weighting."
            )
        return credit.replace(weight=share(credit.weight, rollout), reduced=True)

    return stateless(apply)


def warmup_cosine(
    warmup: int, decay: int, peak: jax.typing.ArrayLike, valley: jax.typing.ArrayLike
) -> Callable[[jax.Array], jax.Array]:
    """step -> value: linear 0 to peak, cosine peak to valley, then valley.

    The mixing schedule of CHORD-mu and the prior of GAC.

    Args:
      warmup, decay: steps of the two phases, at least 0 and 1.
      peak, valley: values after them, fractions.
    """
    check.number("warmup", warmup, low=0)
    check.number("decay", decay, low=1)
    check.number("peak", peak, low=0, high=1)
    check.number("valley", valley, low=0, high=1)

    def value(step):
        step = jnp.asarray(step, jnp.float32)
        part = jnp.clip((step - warmup) / decay, 0.0, 1.0)
        cosine = valley + 0.5 * (peak - valley) * (1 + jnp.cos(jnp.pi * part))
        return jnp.where(step < warmup, peak * step / max(warmup, 1), cosine)

    return value
