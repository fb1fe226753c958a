"""Clip-higher GRPO on a part of the tokens: STAPO, 20-Entropy."""

from collections.abc import Callable

import jax

from rljax import advantage as adv
from rljax import check, loss
from rljax.advantage.token_filter import low_probability
from rljax.algorithms.clip_higher import group_normalised


def stapo(
    *,
    max_prob: float = 0.002,
    entropy_quantile: float = 0.75,
    population_fn: Callable[[jax.Array, jax.Array], jax.Array] = low_probability,
    low: float = 0.2,
    high: float = 0.28,
) -> adv.Algorithm:
    """Silences rare, certain, rewarded tokens; the mean runs over the others (STAPO).

    Source: arXiv:2602.15620 v4 (PAPER). The first versions (SECONDARY) are
      `population_fn=token_filter.all_tokens, entropy_quantile=0.8`.
    """
    silence = adv.silence_spurious(
        max_prob=max_prob,
        entropy_quantile=entropy_quantile,
        population_fn=population_fn,
    )
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.chain(silence, adv.token_mean()),
            loss_fn=loss.ppo_clip(low, high),
        )
    )


def over_selected(select: adv.AdvantageTransform) -> adv.AdvantageTransform:
    """Token mean over the selected tokens: the authors' code."""
    check.kind("select", select, adv.AdvantageTransform, "keep_top_entropy()")
    return adv.chain(select, adv.token_mean())


def over_all(select: adv.AdvantageTransform) -> adv.AdvantageTransform:
    """Sum over the selected tokens / number of all: the paper's equation, TRL."""
    check.kind("select", select, adv.AdvantageTransform, "keep_top_entropy()")
    return adv.chain(adv.token_mean(), select)


def top_entropy(
    *,
    fraction: float = 0.2,
    divisor_fn: Callable[
        [adv.AdvantageTransform], adv.AdvantageTransform
    ] = over_selected,
    low: float = 0.2,
    high: float = 0.28,
    cap: float = 10.0,
) -> adv.Algorithm:
    """DAPO on the tokens of highest entropy alone ("beyond the 80/20 rule").

    Args:
      fraction: of the minibatch's tokens.
      divisor_fn: `over_selected` or `over_all`; they differ by 1 / fraction in scale.
      low, high, cap: of the dual clip.

    Source: arXiv:2506.01939 (equation SECONDARY, code PAPER); without DAPO's overlong
      punishment, which `punish_overlong` adds.
    """
    check.number("fraction", fraction, above=0, high=1)
    check.maker("divisor_fn", divisor_fn, "select")
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(group_normalised(), adv.drop_equal_groups()),
            weighting=divisor_fn(adv.keep_top_entropy(fraction)),
            loss_fn=loss.dual_clip(low, high, cap),
        )
    )
