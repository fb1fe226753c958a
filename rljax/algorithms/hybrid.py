"""Imitation and reinforcement in one loss: LUFFY, SRFT, CHORD, GAC, HPT, UFT.

All read mixed groups with `old` on every row:

    answers = mixed.with_old(mixed.stored_answers(), policy.measure)
    mixed.side_by_side(sampler(...), answers)

Terms are restricted to rows of one kind before their reduction, so that each keeps the
mean of its paper.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import advantage as adv
from rljax import check
from rljax.advantage import mixing
from rljax.algorithms.clip_higher import group_normalised
from rljax.loss import kl, ratio, supervised, surrogate
from rljax.types import Source

_OWN = mixing.keep_source(Source.OWN)
_ALL_ROWS = adv.chain()


def _grpo(clip: float, *after: adv.AdvantageTransform) -> adv.Term:
    """Clipped GRPO on own rows, their statistics, and their token mean."""
    check.number("clip", clip, low=0, high=1)
    return adv.Term(
        surrogate.clipped_ratio(clip, clip),
        advantage=adv.chain(mixing.members_from(Source.OWN), group_normalised()),
        weighting=adv.chain(_OWN, adv.token_mean(), *after),
    )


def luffy(
    *,
    max_tokens: int,
    gamma: jax.typing.ArrayLike = 0.1,
    entropy: jax.typing.ArrayLike = 0.001,
    statistics: adv.AdvantageTransform = _ALL_ROWS,
) -> adv.Algorithm:
    """Off-policy guidance with a shaped probability (arXiv:2504.14945, PAPER: code).

    A = R - mean(R) over the joint group; -A p / p_old on own tokens, unclipped;
    -A p / (p + gamma) on stored tokens; sums over a constant length.

    Args:
      max_tokens: the constant length, tokens; 8192 in the paper.
      gamma: of the shaping, a probability.
      entropy: coefficient of the entropy bonus.
      statistics: whose mean; `mixing.members_from(Source.OWN)` is the code's other
        estimator.
    """
    check.number("max_tokens", max_tokens, above=0)
    check.number("entropy", entropy, low=0)
    check.kind(
        "statistics", statistics, adv.AdvantageTransform, "members_from(Source.OWN)"
    )
    advantage = adv.chain(statistics, adv.center_by_group())
    total = mixing.constant_sum(max_tokens)
    return adv.algorithm(
        policy=adv.Term(
            ratio.plain_ratio(),
            advantage=advantage,
            weighting=adv.chain(_OWN, total),
        ),
        stored=adv.Term(
            supervised.shaped_probability(gamma),
            advantage=advantage,
            weighting=adv.chain(mixing.keep_stored(), total),
        ),
        entropy=adv.Term(
            kl.entropy_bonus(),
            weighting=adv.chain(adv.token_mean(), adv.scale_weight(entropy)),
        ),
    )


def srft(
    *,
    max_tokens: int,
    clip: float = 0.2,
    sft: jax.typing.ArrayLike = 0.5,
    positive: jax.typing.ArrayLike = 0.1,
) -> adv.Algorithm:
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
    check.number("max_tokens", max_tokens, above=0)
    check.number("clip", clip, low=0, high=1)
    check.number("sft", sft, low=0)
    check.number("positive", positive, low=0)
    total = mixing.constant_sum(max_tokens)
    grow = supervised.entropy_weight(positive, 1.0)

    def own_weight(now, credit, rollout):
        return jnp.where(credit.advantage > 0, grow(now, credit, rollout), 1.0)

    imitate = supervised.rectified(
        surrogate.nll(), supervised.entropy_weight(sft, -1.0)
    )
    return adv.algorithm(
        sft=adv.Term(
            imitate, weighting=adv.chain(mixing.keep_stored(), adv.token_mean())
        ),
        stored=adv.Term(
            supervised.behaved_certainly(surrogate.clipped_ratio(clip, clip)),
            advantage=group_normalised(),
            weighting=adv.chain(mixing.keep_stored(), total),
        ),
        policy=adv.Term(
            supervised.rectified(surrogate.reinforce(), own_weight),
            advantage=adv.assign_by_class(lambda g: 1.0, lambda g: -1.0),
            weighting=adv.chain(_OWN, total),
        ),
    )


def mixture(
    mu: jax.typing.ArrayLike,
    *,
    clip: float = 0.2,
    weight_fn: supervised.WeightFn = supervised.uncertainty,
) -> adv.Algorithm:
    """(1 - mu) GRPO on own rows + mu tokmean[-sg[w(p)] log p] on stored rows.

    Args:
      mu: share of the supervised loss, a fraction; a traced one outside [0, 1] makes a
        weight negative, and the update is refused.
      clip: of the GRPO term.
      weight_fn: of a stored token, under stop-gradient.
    """
    check.number("mu", mu, low=0, high=1)
    check.number("clip", clip, low=0, high=1)
    check.function("weight_fn", weight_fn, "now, credit, rollout")
    imitate = supervised.rectified(surrogate.nll(), weight_fn)
    return adv.algorithm(
        policy=_grpo(clip, adv.scale_weight(1 - mu)),
        sft=adv.Term(
            imitate,
            weighting=adv.chain(
                mixing.keep_stored(), adv.token_mean(), adv.scale_weight(mu)
            ),
        ),
    )


def chord(
    *,
    mu_fn: Callable[[jax.Array], jax.Array] = lambda step: jnp.float32(0.1),
    clip: float = 0.2,
    weight_fn: supervised.WeightFn = supervised.uncertainty,
) -> adv.Algorithm:
    """A scheduled mixture (arXiv:2508.11408, PAPER: Trinity-RFT chord_policy_loss.py).

    Args:
      mu_fn: optimiser step -> share of the supervised loss; constant 0.1 as the code's
        default, or `warmup_cosine(...)` for CHORD-mu.
      clip: of the GRPO term.
      weight_fn: `supervised.uncertainty` is CHORD-phi, `supervised.unit` CHORD-mu's
        plain likelihood.
    """
    check.function("mu_fn", mu_fn, "step")
    check.number("clip", clip, low=0, high=1)
    check.function("weight_fn", weight_fn, "now, credit, rollout")

    def make(mu):
        return mixture(mu, clip=clip, weight_fn=weight_fn)

    return adv.controlled_algorithm(
        make, adv.schedule(mu_fn), lambda credits, rollout: ()
    )


def gac(
    *,
    clip: float = 0.2,
    weight_fn: supervised.WeightFn = supervised.uncertainty,
    prior: Callable[[jax.Array], jax.Array] | None = None,
    trim: float = 0.1,
    scale_fn: Callable[..., jax.Array] = adv.gac.as_they_are,
    **controller,
) -> adv.Algorithm:
    """A mixture whose share follows noise and mismatch (arXiv:2605.26184, PAPER: code).

    Args:
      clip: of the GRPO term.
      weight_fn: `supervised.uncertainty`, or `supervised.unit` for "w/o phi".
      prior: step -> share; None is the README's `warmup_cosine(200, 800, 0.85, 0.15)`.
      trim, scale_fn: see `advantage.gac.gac_proxies`.
      **controller: see `advantage.gac.gac_controller`.
    """
    check.number("clip", clip, low=0, high=1)
    prior = mixing.warmup_cosine(200, 800, 0.85, 0.15) if prior is None else prior
    return adv.controlled_algorithm(
        lambda value: mixture(value.mu, clip=clip, weight_fn=weight_fn),
        adv.gac.gac_controller(prior=prior, **controller),
        adv.gac.gac_proxies(weight_fn, trim=trim, scale_fn=scale_fn),
    )


def hpt(
    *,
    max_tokens: int,
    gate: jax.typing.ArrayLike = 0,
    coefficient: jax.typing.ArrayLike = 1.0,
) -> adv.Algorithm:
    """A hard gate per prompt (arXiv:2509.04419, PAPER: Unify-Post-Training).

    Prompts with at most `gate` correct rollouts learn their demonstrations (token mean
    of -log p), the others their rollouts (A = R - mean over them, no clip, sum over a
    constant length).

    Args:
      max_tokens: the constant length, tokens.
      gate: correct rollouts, a count; 0 (Qwen) or 2 (Llama).
      coefficient: of the imitation term; 0.3 for 1.5B models.
    """
    check.number("max_tokens", max_tokens, above=0)
    check.number("gate", gate, low=0)
    check.number("coefficient", coefficient, low=0)
    return adv.algorithm(
        policy=adv.Term(
            ratio.plain_ratio(),
            advantage=adv.chain(mixing.members_from(Source.OWN), adv.center_by_group()),
            weighting=adv.chain(
                _OWN,
                mixing.keep_prompts(lambda solved: solved > gate),
                mixing.constant_sum(max_tokens),
            ),
        ),
        sft=adv.Term(
            surrogate.nll(),
            weighting=adv.chain(
                mixing.keep_stored(),
                mixing.keep_prompts(lambda solved: ~(solved > gate)),
                adv.token_mean(),
                adv.scale_weight(coefficient),
            ),
        ),
    )


def uft(
    *,
    clip: float = 0.2,
    hint: jax.typing.ArrayLike = 0.001,
    reference: jax.typing.ArrayLike = 0.001,
    entropy: jax.typing.ArrayLike = 0.001,
) -> adv.Algorithm:
    """GRPO from hinted prompts and likelihood of the hints (arXiv:2505.16984, PAPER).

    Needs the act of `rljax.rollout.hint` and reference parameters.

    Args:
      clip: of the GRPO term on the continuations.
      hint: coefficient of the token mean of -log p over hint tokens.
      reference, entropy: coefficients of k3 against the reference and of the entropy
        bonus, both on own tokens.
    """
    check.number("hint", hint, low=0)
    check.number("reference", reference, low=0)
    check.number("entropy", entropy, low=0)

    def own(coefficient):
        return adv.chain(_OWN, adv.token_mean(), adv.scale_weight(coefficient))

    hints = adv.chain(
        adv.keep_rows(mixing.is_hint), adv.token_mean(), adv.scale_weight(hint)
    )
    return adv.algorithm(
        policy=_grpo(clip),
        hint=adv.Term(surrogate.nll(), weighting=hints),
        reference=adv.Term(kl.kl_k3(), weighting=own(reference)),
        entropy=adv.Term(kl.entropy_bonus(), weighting=own(entropy)),
    )
