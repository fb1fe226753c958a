"""Imitation and reinforcement in one loss: LUFFY, SRFT, CHORD, GAC, HPT, UFT.

All read mixed groups with `old` measured on every row. The sampler for them is

    answers = mixed.with_old(mixed.stored_answers(), policy.measure)
    mixed.side_by_side(sampler(...), answers)

of `rljax.rollout.mixed`. "Own" rows are the policy's samples; "stored" rows are
demonstrations and teacher answers. Each term keeps rows of one kind before its
reduction, so that its mean runs over these rows as in its paper.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss
from rljax.types import Source

_OWN = adv.keep_source(Source.OWN)
_ALL_ROWS = adv.chain()

# The schedule of the mixing share in the README of GAC's code: a fraction by step.
README_PRIOR = optax.warmup_cosine_decay_schedule(0.0, 0.85, 200, 1000, 0.15)


def _grpo(clip: ArrayLike, *after: adv.AdvantageTransform) -> adv.Term:
    """Clipped GRPO on own rows: group statistics and token mean are of own rows."""
    check.number("clip", clip, low=0, high=1)
    return adv.Term(
        advantage=adv.chain(adv.restrict_members(Source.OWN), adv.normalise_by_group()),
        weighting=adv.chain(_OWN, adv.token_mean(), *after),
        loss_fn=loss.ppo_clip(clip, clip),
    )


def luffy(
    *,
    max_tokens: int,
    gamma: ArrayLike = 0.1,
    entropy: ArrayLike = 0.001,
    statistics: adv.AdvantageTransform = _ALL_ROWS,
) -> adv.Algorithm:
    """Off-policy guidance with a shaped probability (LUFFY).

    A = R - mean(R) over the joint group. The loss is -A p / p_old on own tokens,
    unclipped, and -A p / (p + gamma) on stored tokens; sums over a constant length.

    Args:
      max_tokens: the constant length, tokens; 8192 in the paper.
      gamma: of the shaping, a probability.
      entropy: coefficient of the entropy bonus.
      statistics: selects the rows of mean(R); all by default. The code's other
        estimator is `adv.restrict_members(Source.OWN)`.

    Source: arXiv:2504.14945; code ElliottYan/LUFFY mix_core_alg.py (PAPER).
    """
    check.number("max_tokens", max_tokens, above=0)
    check.number("entropy", entropy, low=0)
    check.kind(
        "statistics", statistics, adv.AdvantageTransform, "restrict_members(Source.OWN)"
    )
    advantage = adv.chain(statistics, adv.center_by_group())
    total = adv.constant_sum(max_tokens)
    return adv.algorithm(
        policy=adv.Term(
            advantage=advantage,
            weighting=adv.chain(_OWN, total),
            loss_fn=loss.unclipped_ratio(),
        ),
        stored=adv.Term(
            advantage=advantage,
            weighting=adv.chain(adv.keep_stored(), total),
            loss_fn=loss.shaped_probability(gamma),
        ),
        entropy=adv.Term(
            weighting=adv.chain(adv.token_mean(), adv.scale_weight(entropy)),
            loss_fn=loss.entropy_bonus(),
        ),
    )


def srft(
    *,
    max_tokens: int,
    clip: ArrayLike = 0.2,
    sft: ArrayLike = 0.5,
    positive: ArrayLike = 0.1,
) -> adv.Algorithm:
    """Single-stage SFT and RL weighted by entropy (SRFT).

    Stored rows have two terms: sft exp(-H) (-log p), and a clipped GRPO term with old
    probability 1 and advantages of the joint group. Own rows have the loss
    positive exp(H) (-log p) if correct, else log p. H is the row's mean entropy. The
    reductions are those of the re-implementation in Unify-Post-Training: a token mean
    for the first term, sums over a constant length for the others.

    Args:
      max_tokens: the constant length, tokens.
      clip: distance of both bounds of the GRPO term's ratio from 1.
      sft: coefficient of the entropy weight on stored rows.
      positive: coefficient of the entropy weight on correct own rows.

    Source: arXiv:2506.19767; code TsinghuaC3I/Unify-Post-Training mix_actor.py
      (SECONDARY).
    """
    check.number("max_tokens", max_tokens, above=0)
    check.number("clip", clip, low=0, high=1)
    check.number("sft", sft, low=0)
    check.number("positive", positive, low=0)
    total = adv.constant_sum(max_tokens)
    grow = loss.supervised.entropy_weight(positive, 1.0)

    def own_weight(now, credit, rollout):
        return jnp.where(credit.advantage > 0, grow(now, credit, rollout), 1.0)

    return adv.algorithm(
        sft=adv.Term(
            weighting=adv.chain(adv.keep_stored(), adv.token_mean()),
            loss_fn=loss.reweighted(
                loss.nll(), loss.supervised.entropy_weight(sft, -1.0)
            ),
        ),
        stored=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.chain(adv.keep_stored(), total),
            loss_fn=loss.with_behaviour_prob_one(loss.ppo_clip(clip, clip)),
        ),
        policy=adv.Term(
            advantage=adv.assign_by_class(lambda g: 1.0, lambda g: -1.0),
            weighting=adv.chain(_OWN, total),
            loss_fn=loss.reweighted(loss.reinforce(), own_weight),
        ),
    )


def mixture(
    mu: ArrayLike,
    *,
    clip: ArrayLike = 0.2,
    weight_fn: loss.supervised.WeightFn = loss.supervised.uncertainty,
) -> adv.Algorithm:
    """(1 - mu) GRPO on own rows + mu tokmean[-sg[w(p)] log p] on stored rows.

    Args:
      mu: share of the supervised loss, a fraction. A traced mu outside [0, 1] makes a
        weight negative, and the step is refused.
      clip: distance of both bounds of the GRPO term's ratio from 1.
      weight_fn: w of a stored token, under stop-gradient.

    Source: none, the common form of CHORD and GAC (TEXTBOOK).
    """
    check.number("mu", mu, low=0, high=1)
    check.number("clip", clip, low=0, high=1)
    check.function("weight_fn", weight_fn, "now, credit, rollout")
    return adv.algorithm(
        policy=_grpo(clip, adv.scale_weight(1 - mu)),
        sft=adv.Term(
            weighting=adv.chain(
                adv.keep_stored(), adv.token_mean(), adv.scale_weight(mu)
            ),
            loss_fn=loss.reweighted(loss.nll(), weight_fn),
        ),
    )


def chord(
    *,
    mu_fn: Callable[[jax.Array], ArrayLike] = lambda step: jnp.float32(0.1),
    clip: ArrayLike = 0.2,
    weight_fn: loss.supervised.WeightFn = loss.supervised.uncertainty,
) -> adv.Algorithm:
    """`mixture` with a share that follows a schedule (CHORD).

    Args:
      mu_fn: optimiser step -> share of the supervised loss: a constant (the code's
        default is 0.1), or an optax schedule for CHORD-mu.
      clip: distance of both bounds of the GRPO term's ratio from 1.
      weight_fn: `loss.supervised.uncertainty` is CHORD-phi, `loss.supervised.unit` the
        plain likelihood of CHORD-mu.

    Source: arXiv:2508.11408; code Trinity-RFT chord_policy_loss.py (PAPER).
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
    clip: ArrayLike = 0.2,
    weight_fn: loss.supervised.WeightFn = loss.supervised.uncertainty,
    controller: adv.Controller | None = None,
    trim: float = 0.1,
    scale_fn: Callable[..., jax.Array] = adv.gac.as_they_are,
) -> adv.Algorithm:
    """`mixture` with a share set by noise and mismatch of the two gradients (GAC).

    Args:
      clip: distance of both bounds of the GRPO term's ratio from 1.
      weight_fn: `loss.supervised.uncertainty`, or `loss.supervised.unit` for "w/o phi".
      controller: of the share; None is `adv.gac.gac_controller(prior=README_PRIOR)`.
      trim: fraction of rows left out at each end for the supervised variance.
      scale_fn: `adv.gac.as_they_are` or `adv.gac.z_scores`.

    Source: arXiv:2605.26184; code deepnovacore/GAC gac/controller.py (PAPER).
    """
    check.number("clip", clip, low=0, high=1)
    if controller is None:
        controller = adv.gac.gac_controller(prior=README_PRIOR)
    return adv.controlled_algorithm(
        lambda value: mixture(value.mu, clip=clip, weight_fn=weight_fn),
        controller,
        adv.gac.gac_proxies(weight_fn, trim=trim, scale_fn=scale_fn),
    )


def hpt(
    *, max_tokens: int, gate: ArrayLike = 0, coefficient: ArrayLike = 1.0
) -> adv.Algorithm:
    """A hard gate per prompt: imitation or reinforcement (HPT).

    A prompt with at most `gate` correct own rows learns from its stored rows: token
    mean of -log p. Any other prompt learns from its own rows: A = R - mean over own
    rows, no clip, sum over a constant length.

    Args:
      max_tokens: the constant length, tokens.
      gate: number of correct own rows; 0 (Qwen) or 2 (Llama).
      coefficient: of the imitation term; 0.3 for 1.5B models.

    Source: arXiv:2509.04419; code TsinghuaC3I/Unify-Post-Training (PAPER).
    """
    check.number("max_tokens", max_tokens, above=0)
    check.number("gate", gate, low=0)
    check.number("coefficient", coefficient, low=0)
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(
                adv.restrict_members(Source.OWN), adv.center_by_group()
            ),
            weighting=adv.chain(
                _OWN,
                adv.keep_prompts(lambda solved: solved > gate),
                adv.constant_sum(max_tokens),
            ),
            loss_fn=loss.unclipped_ratio(),
        ),
        sft=adv.Term(
            weighting=adv.chain(
                adv.keep_stored(),
                adv.keep_prompts(lambda solved: ~(solved > gate)),
                adv.token_mean(),
                adv.scale_weight(coefficient),
            ),
            loss_fn=loss.nll(),
        ),
    )


def uft(
    *,
    clip: ArrayLike = 0.2,
    hint: ArrayLike = 0.001,
    reference: ArrayLike = 0.001,
    entropy: ArrayLike = 0.001,
) -> adv.Algorithm:
    """GRPO from hinted prompts and likelihood of the hints (UFT).

    Needs an act wrapped in `rljax.rollout.hint.reveal_hints`, and reference parameters.

    Args:
      clip: distance of both bounds of the ratio from 1, on the continuations.
      hint: coefficient of the token mean of -log p over hint tokens.
      reference: coefficient of k3 against the reference, on own tokens.
      entropy: coefficient of the entropy bonus, on own tokens.

    Source: arXiv:2505.16984; code liumy2010/UFT (PAPER).
    """
    check.number("hint", hint, low=0)
    check.number("reference", reference, low=0)
    check.number("entropy", entropy, low=0)

    def own(coefficient):
        return adv.chain(_OWN, adv.token_mean(), adv.scale_weight(coefficient))

    hints = adv.keep_rows(adv.filter.is_hint)
    return adv.algorithm(
        policy=_grpo(clip),
        hint=adv.Term(
            weighting=adv.chain(hints, adv.token_mean(), adv.scale_weight(hint)),
            loss_fn=loss.nll(),
        ),
        reference=adv.Term(weighting=own(reference), loss_fn=loss.kl_k3()),
        entropy=adv.Term(weighting=own(entropy), loss_fn=loss.entropy_bonus()),
    )
