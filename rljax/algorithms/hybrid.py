"""Imitation and reinforcement in one loss: LUFFY, SRFT, CHORD, GAC, HPT, UFT.

All read mixed groups with `old` on every row:

    mix.joined(sampler(...), mix.measured(mix.stored(), policy.measure))

Terms are restricted to rows of one kind before their reduction, so that each keeps the
mean of its paper.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax.advantage import (
    AdvantageTransform,
    Algorithm,
    Term,
    algorithm,
    center_by_group,
    chain,
    constant_sum,
    controlled_algorithm,
    gac,
    keep_prompts,
    keep_source,
    keep_stored,
    members_from,
    scale_by_group_std,
    scale_weight,
    schedule,
    sign_of_correct,
    token_mean,
    warmup_cosine,
)
from rljax.loss import clipped_ratio, entropy_bonus, kl_k3, nll, reinforce, supervised
from rljax.types import Source

_OWN = keep_source(Source.OWN)


def _grpo(clip: float, *after: AdvantageTransform) -> Term:
    """Clipped GRPO on own rows, their statistics, and their token mean."""
    return Term(
        clipped_ratio(clip, clip),
        advantage=chain(
            members_from(Source.OWN), center_by_group(), scale_by_group_std()
        ),
        weighting=chain(_OWN, token_mean(), *after),
    )


def luffy(
    *,
    max_tokens: int,
    gamma: jax.typing.ArrayLike = 0.1,
    entropy: jax.typing.ArrayLike = 0.001,
    statistics: AdvantageTransform = chain(),
) -> Algorithm:
    """Off-policy guidance with a shaped probability (arXiv:2504.14945, PAPER: code).

    A = R - mean(R) over the joint group; -A p / p_old on own tokens, unclipped;
    -A p / (p + gamma) on stored tokens; sums over a constant length.

    Args:
      max_tokens: the constant length, tokens; 8192 in the paper.
      gamma: of the shaping, a probability.
      entropy: coefficient of the entropy bonus.
      statistics: `members_from(Source.OWN)` takes the mean over own rows alone (the
        code's other estimator).
    """
    advantage = chain(statistics, center_by_group())
    total = constant_sum(max_tokens)
    return algorithm(
        policy=Term(
            supervised.unclipped_ratio(),
            advantage=advantage,
            weighting=chain(_OWN, total),
        ),
        stored=Term(
            supervised.shaped_probability(gamma),
            advantage=advantage,
            weighting=chain(keep_stored(), total),
        ),
        entropy=Term(
            entropy_bonus(), weighting=chain(token_mean(), scale_weight(entropy))
        ),
    )


def srft(
    *,
    max_tokens: int,
    clip: float = 0.2,
    sft: jax.typing.ArrayLike = 0.5,
    positive: jax.typing.ArrayLike = 0.1,
) -> Algorithm:
    """Single-stage SFT and RL weighed by entropy (arXiv:2506.19767, SECONDARY).

    sft exp(-H) (-log p) and a clipped GRPO term with old probability 1 on stored rows,
    in the joint group; positive exp(H) (-log p) on correct own rows, log p on others.
    Reductions from the re-implementation in Unify-Post-Training: token mean for the
    first, sum over a constant length for the rest.

    Args:
      max_tokens: the constant length, tokens.
      clip: of the GRPO term.
      sft, positive: coefficients of the two entropy weights.
    """
    total = constant_sum(max_tokens)
    grow = supervised.entropy_weight(positive, 1.0)

    def own_weight(now, credit, rollout):
        return jnp.where(credit.advantage > 0, grow(now, credit, rollout), 1.0)

    imitate = supervised.rectified(nll(), supervised.entropy_weight(sft, -1.0))
    return algorithm(
        sft=Term(imitate, weighting=chain(keep_stored(), token_mean())),
        stored=Term(
            supervised.behaved_certainly(clipped_ratio(clip, clip)),
            advantage=chain(center_by_group(), scale_by_group_std()),
            weighting=chain(keep_stored(), total),
        ),
        policy=Term(
            supervised.rectified(reinforce(), own_weight),
            advantage=sign_of_correct(),
            weighting=chain(_OWN, total),
        ),
    )


def mixture(
    mu: jax.typing.ArrayLike,
    *,
    clip: float = 0.2,
    weight_fn: supervised.WeightFn = supervised.uncertainty,
) -> Algorithm:
    """(1 - mu) GRPO on own rows + mu tokmean[-sg[w(p)] log p] on stored rows."""
    imitate = supervised.rectified(nll(), weight_fn)
    return algorithm(
        policy=_grpo(clip, scale_weight(1 - mu)),
        sft=Term(
            imitate, weighting=chain(keep_stored(), token_mean(), scale_weight(mu))
        ),
    )


def chord(
    *,
    mu_fn: Callable[[jax.Array], jax.Array] = lambda step: jnp.float32(0.1),
    clip: float = 0.2,
    weight_fn: supervised.WeightFn = supervised.uncertainty,
) -> Algorithm:
    """A scheduled mixture (arXiv:2508.11408, PAPER: Trinity-RFT chord_policy_loss.py).

    Args:
      mu_fn: optimiser step -> share of the supervised loss; constant 0.1 as the code's
        default, or `warmup_cosine(...)` for CHORD-mu.
      clip: of the GRPO term.
      weight_fn: `supervised.uncertainty` is CHORD-phi, `supervised.unit` CHORD-mu's
        plain likelihood.
    """

    def make(mu):
        return mixture(mu, clip=clip, weight_fn=weight_fn)

    return controlled_algorithm(make, schedule(mu_fn), lambda credits, rollout: ())


def gac_mixture(
    *,
    clip: float = 0.2,
    weight_fn: supervised.WeightFn = supervised.uncertainty,
    prior: Callable[[jax.Array], jax.Array] | None = None,
    trim: float = 0.1,
    scale_fn: Callable[..., jax.Array] = gac.as_they_are,
    **controller,
) -> Algorithm:
    """A mixture whose share follows noise and mismatch (arXiv:2605.26184, PAPER: code).

    Args:
      clip: of the GRPO term.
      weight_fn: `supervised.uncertainty`, or `supervised.unit` for "w/o phi".
      prior: step -> share; None is the README's `warmup_cosine(200, 800, 0.85, 0.15)`.
      trim, scale_fn: see `gac.gac_proxies`.
      **controller: see `gac.gac_controller`.
    """
    prior = warmup_cosine(200, 800, 0.85, 0.15) if prior is None else prior
    return controlled_algorithm(
        lambda value: mixture(value.mu, clip=clip, weight_fn=weight_fn),
        gac.gac_controller(prior=prior, **controller),
        gac.gac_proxies(weight_fn, trim=trim, scale_fn=scale_fn),
    )


def hpt(
    *,
    max_tokens: int,
    gate: jax.typing.ArrayLike = 0,
    coefficient: jax.typing.ArrayLike = 1.0,
) -> Algorithm:
    """A hard gate per prompt (arXiv:2509.04419, PAPER: Unify-Post-Training).

    Prompts with at most `gate` correct rollouts learn their demonstrations (token mean of
    -log p), the others their rollouts (A = R - mean over them, no clip, sum over a
    constant length).

    Args:
      max_tokens: the constant length, tokens.
      gate: correct rollouts, a count; 0 (Qwen) or 2 (Llama).
      coefficient: of the imitation term; 0.3 for 1.5B models.
    """
    return algorithm(
        policy=Term(
            supervised.unclipped_ratio(),
            advantage=chain(members_from(Source.OWN), center_by_group()),
            weighting=chain(
                _OWN,
                keep_prompts(lambda solved: solved > gate),
                constant_sum(max_tokens),
            ),
        ),
        sft=Term(
            nll(),
            weighting=chain(
                keep_stored(),
                keep_prompts(lambda solved: solved <= gate),
                token_mean(),
                scale_weight(coefficient),
            ),
        ),
    )


def uft(
    *,
    clip: float = 0.2,
    hint: jax.typing.ArrayLike = 0.001,
    kl: jax.typing.ArrayLike = 0.001,
    entropy: jax.typing.ArrayLike = 0.001,
) -> Algorithm:
    """GRPO from hinted prompts and likelihood of the hints (arXiv:2505.16984, PAPER).

    Needs the act of `rljax.hint` and reference parameters.

    Args:
      clip: of the GRPO term on the continuations.
      hint: coefficient of the token mean of -log p over hint tokens.
      kl, entropy: coefficients of k3 against the reference and of the entropy bonus,
        both on own tokens.
    """

    def own(coefficient):
        return chain(_OWN, token_mean(), scale_weight(coefficient))

    hints = chain(keep_source(Source.DEMONSTRATION), token_mean(), scale_weight(hint))
    return algorithm(
        policy=_grpo(clip),
        hint=Term(nll(), weighting=hints),
        kl=Term(kl_k3(), weighting=own(kl)),
        entropy=Term(entropy_bonus(), weighting=own(entropy)),
    )
