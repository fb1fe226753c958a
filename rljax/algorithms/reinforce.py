"""REINFORCE and its baselines: A = r - b and the likelihood-ratio gradient.

The loss is -A log pi, mean over tokens unless a recipe says otherwise. For several
optimiser steps per rollout batch give the same advantages to
`algorithms.ppo_clip_policy`.
"""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss


def _likelihood(advantage, mean):
    return adv.algorithm(
        policy=adv.Term(advantage=advantage, weighting=mean, loss_fn=loss.reinforce())
    )


def reinforce(*, baseline: ArrayLike = 0.0) -> adv.Algorithm:
    """A = r - b, b a constant: with rewards 0/1 masses p (1 - b), q b; f = p.

    b = 0 pushes only successes, also in groups that are solved already.

    Args:
      baseline: b, reward units.

    Source: Williams 1992 (TEXTBOOK).
    """
    check.number("baseline", baseline)
    return _likelihood(adv.center_by(baseline), adv.token_mean())


def reinforce_signed() -> adv.Algorithm:
    """A = 1 for successes, -1 for failures: masses p, q; f = 2 p.

    Source: Williams 1992, with rewards +-1 (TEXTBOOK).
    """
    return _likelihood(
        adv.assign_by_class(lambda g: 1.0, lambda g: -1.0), adv.token_mean()
    )


def remax() -> adv.Algorithm:
    """A = r - reward of the prompt's greedy sample (ReMax).

    The sampler must return one greedy row per prompt (`Source.GREEDY`). This row gets
    no weight.

    Source: arXiv:2310.10505 (SECONDARY).
    """
    return _likelihood(adv.center_by_greedy(), adv.token_mean())


def rloo() -> adv.Algorithm:
    """A = r - mean of the others' r = n/(n-1) (r - mean r): E[m] = p q (RLOO).

    The loss is -A log pi of the whole sequence, mean over rows.

    Source: arXiv:2402.14740; TRL, OpenRLHF, verl, ms-swift (SECONDARY).
    Variants: TRL and verl use a clipped ratio, as
      `ppo_clip_policy(adv.center_by_leave_one_out())` does, with a token mean.
    """
    return _likelihood(adv.center_by_leave_one_out(), adv.constant_length(1))


def raft() -> adv.Algorithm:
    """A_S = 1 / p, A_F = 0, the mean over each group's successes; f = log p (RAFT).

    This is filtered fine-tuning in which every solved prompt counts equally: m_S = 1.

    Source: none, filtered fine-tuning as an advantage (DERIVED).
    """
    return _likelihood(adv.scale_by_rate(lambda p: 1 / p), adv.token_mean())


def opo() -> adv.Algorithm:
    """A = r - sum(l r) / sum(l), l lengths: balanced in tokens (OPO).

    The paper is exactly on-policy: one optimiser step per rollout batch, no KL, no
    entropy term.

    Source: arXiv:2505.23585; verl `opo` (SECONDARY).
    """
    return _likelihood(adv.center_by_length(), adv.token_mean())


def gpg() -> adv.Algorithm:
    """A = alpha (r - mean r), alpha = groups / groups of unequal rewards (GPG).

    Both masses are alpha p q. The loss is -A log pi: no ratio, no clip, no KL. The
    authors resample until at least half of the groups are mixed (metric
    `policy/mixed_share`); for that wrap the learner in `rljax.learn.dynamic_sampling`.

    Source: arXiv:2504.02546 (PAPER).
    """
    return _likelihood(
        adv.chain(adv.center_by_group(), adv.scale_by_mixed_share()), adv.token_mean()
    )
