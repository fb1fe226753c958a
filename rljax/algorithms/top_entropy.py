"""20-Entropy: clip-higher GRPO on the tokens of highest entropy."""

from collections.abc import Callable

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss


def over_selected(select: adv.AdvantageTransform) -> adv.AdvantageTransform:
    """A weighting that averages over the selected tokens: the authors' code."""
    check.kind("select", select, adv.AdvantageTransform, "keep_top_entropy()")
    return adv.chain(select, adv.token_mean())


def over_all(select: adv.AdvantageTransform) -> adv.AdvantageTransform:
    """A weighting that sums the selected tokens and divides by the number of all: the
    paper's equation, TRL.
    """
    check.kind("select", select, adv.AdvantageTransform, "keep_top_entropy()")
    return adv.chain(adv.token_mean(), select)


def top_entropy(
    *,
    fraction: ArrayLike = 0.2,
    divisor_fn: Callable[
        [adv.AdvantageTransform], adv.AdvantageTransform
    ] = over_selected,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.28,
    cap: ArrayLike = 10.0,
) -> adv.Algorithm:
    """DAPO on the tokens of highest entropy only ("beyond the 80/20 rule").

    Without DAPO's overlong punishment; add `adv.punish_overlong` for that.

    Args:
      fraction: of the minibatch's tokens.
      divisor_fn: `over_selected` or `over_all`; they differ by 1 / fraction in scale.
      low, high: distances of the clip's bounds from 1.
      cap: largest ratio that a negative advantage is multiplied by.

    Source: arXiv:2506.01939 (code PAPER; equation SECONDARY).
    """
    check.number("fraction", fraction, above=0, high=1)
    check.maker("divisor_fn", divisor_fn, "select")
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(adv.normalise_by_group(), adv.drop_equal_groups()),
            weighting=divisor_fn(adv.keep_top_entropy(fraction)),
            loss_fn=loss.dual_clip(low, high, cap),
        )
    )
