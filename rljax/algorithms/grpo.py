"""GRPO and its relatives: the group mean as baseline, divided by a group norm."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss
from rljax.algorithms.ppo_clip import ppo_clip_policy


def grpo(
    *, clip: ArrayLike = 0.2, ddof: int = 0, epsilon: ArrayLike = 0.0
) -> adv.Algorithm:
    """A = (r - mean r) / std r: both masses sqrt(p q); f = 2 arcsin sqrt p (GRPO).

    Mean over rows of token means. Without the KL term, which `grpo_kl` has.

    Args:
      clip: distance of both bounds of the ratio from 1.
      ddof: 0 is the formula; torch.std in verl and TRL has 1.
      epsilon: added to the standard deviation, reward units.

    Source: arXiv:2402.03300, eq. (3) (TEXTBOOK).
    """
    return adv.algorithm(policy=_policy(clip, ddof, epsilon))


def grpo_kl(
    *,
    beta: ArrayLike = 0.04,
    clip: ArrayLike = 0.2,
    ddof: int = 0,
    epsilon: ArrayLike = 0.0,
) -> adv.Algorithm:
    """`grpo` with beta KL(pi || pi_ref), the k3 estimate: the paper's objective.

    Needs reference parameters.

    Args:
      beta: coefficient of the KL term.
      clip: distance of both bounds of the ratio from 1.
      ddof: 0 is the formula; torch.std in verl and TRL has 1.
      epsilon: added to the standard deviation, reward units.

    Source: arXiv:2402.03300, eqs. (3), (4) (TEXTBOOK).
    """
    check.number("beta", beta, low=0)
    return adv.algorithm(
        policy=_policy(clip, ddof, epsilon),
        kl=adv.Term(
            weighting=adv.chain(adv.sequence_mean(), adv.scale_weight(beta)),
            loss_fn=loss.kl_k3(),
        ),
    )


def _policy(clip, ddof, epsilon):
    check.number("clip", clip, low=0, high=1)
    return adv.Term(
        advantage=adv.normalise_by_group(ddof=ddof, epsilon=epsilon),
        weighting=adv.sequence_mean(),
        loss_fn=loss.ppo_clip(clip, clip),
    )


def dr_grpo(max_tokens: int, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A = r - mean r: both masses p q; f = p. Token sums over a constant (Dr. GRPO).

    Args:
      max_tokens: the divisor, the longest completion allowed, tokens.
      clip: distance of both bounds of the ratio from 1.

    Source: Dr. GRPO, arXiv:2503.20783 (PAPER).
    """
    check.number("max_tokens", max_tokens, above=0)
    check.number("clip", clip, low=0, high=1)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.center_by_group(),
            weighting=adv.constant_length(max_tokens),
            loss_fn=loss.ppo_clip(clip, clip),
        )
    )


def norm_grpo(order: ArrayLike, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """A = (r - p) / N, N = (mean |r - p|^s)^(1/s): both masses p q / N.

    s = 2 is GRPO. s = 1 has masses 1/2 in every mixed group, s = infinity min(p, q).

    Args:
      order: s > 0, infinity included.
      clip: distance of both bounds of the ratio from 1.

    Source: none, a family of ours (DERIVED).
    """
    return ppo_clip_policy(
        adv.center_by_group(), adv.scale_by_group_norm(order), clip=clip
    )


def qae(
    *,
    level: ArrayLike = 0.4,
    scale: adv.AdvantageTransform | None = None,
    clip: ArrayLike = 0.2,
) -> adv.Algorithm:
    """A = (r - Q) / n, Q a quantile: only successes count up to p = 1 - level (QAE).

    Args:
      level: of the quantile, a fraction; 0.4 is unverified.
      scale: divides by n, whose definition is unverified; None is
        `adv.scale_by_group_std()`, `adv.chain()` is n = 1.
      clip: distance of both bounds of the ratio from 1.

    Source: QAE, arXiv:2509.22611 (gate SECONDARY; formula RECONSTRUCTED).
    """
    if scale is not None:
        check.kind("scale", scale, adv.AdvantageTransform, "scale_by_group_std()")
    scale = adv.scale_by_group_std() if scale is None else scale
    return ppo_clip_policy(adv.center_by_quantile(level), scale, clip=clip)
