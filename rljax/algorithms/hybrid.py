"""Imitation and reinforcement in one loss: LUFFY, SRFT, CHORD, GAC, HPT, UFT.

All read mixed groups with `old` on every row:

    mix.joined(sampler(...), mix.measured(mix.stored(), policy.measure))

Terms are restricted to rows of one kind before their reduction, so that each keeps the
mean of its paper.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rljax import advantage as adv
from rljax import check
from rljax.algorithms.clip_higher import group_normalised
from rljax.loss import kl, ratio, supervised, surrogate
from rljax.types import Source

_OWN = adv.keep_source(Source.OWN)
_ALL_ROWS = adv.chain()

# The mixing schedule of GAC's README, a fraction.
README_PRIOR = optax.warmup_cosine_decay_schedule(0.0, 0.85, 200, 1000, 0.15)


def _grpo(clip: float, *after: adv.AdvantageTransform) -> adv.Term:
    """Clipped GRPO on own rows, their statistics, and their token mean."""
    check.number("clip", clip, low=0, high=1)
    return adv.Term(
        advantage=adv.chain(adv.restrict_members(Source.OWN), group_normalised()),
        weighting=adv.chain(_OWN, adv.token_mean(), *after),
        loss_fn=surrogate.ppo_clip(clip, clip),
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
      statistics: whose mean; `adv.restrict_members(Source.OWN)` is the code's other
        estimator.
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
            loss_fn=ratio.unclipped_ratio(),
        ),
        stored=adv.Term(
            advantage=advantage,
            weighting=adv.chain(adv.keep_stored(), total),
            loss_fn=supervised.shaped_probability(gamma),
        ),
        entropy=adv.Term(
            weighting=adv.chain(adv.token_mean(), adv.scale_weight(entropy)),
            loss_fn=kl.entropy_bonus(),
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
    total = adv.constant_sum(max_tokens)
    grow = supervised.entropy_weight(positive, 1.0)

    def own_weight(now, credit, rollout):
        return jnp.where(credit.advantage > 0, grow(now, credit, rollout), 1.0)

    imitate = supervised.reweighted(
        surrogate.nll(), supervised.entropy_weight(sft, -1.0)
    )
    return adv.algorithm(
        sft=adv.Term(
            weighting=adv.chain(adv.keep_stored(), adv.token_mean()), loss_fn=imitate
        ),
        stored=adv.Term(
            advantage=group_normalised(),
            weighting=adv.chain(adv.keep_stored(), total),
            loss_fn=supervised.with_behaviour_prob_one(surrogate.ppo_clip(clip, clip)),
        ),
        policy=adv.Term(
            advantage=adv.assign_by_class(lambda g: 1.0, lambda g: -1.0),
            weighting=adv.chain(_OWN, total),
            loss_fn=supervised.reweighted(surrogate.reinforce(), own_weight),
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
    imitate = supervised.reweighted(surrogate.nll(), weight_fn)
    return adv.algorithm(
        policy=_grpo(clip, adv.scale_weight(1 - mu)),
        sft=adv.Term(
            weighting=adv.chain(
                adv.keep_stored(), adv.token_mean(), adv.scale_weight(mu)
            ),
            loss_fn=imitate,
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
        default, or an optax schedule for CHORD-mu.
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
    prior: Callable[[jax.Array], jax.Array] | None = README_PRIOR,
    trim: float = 0.1,
    scale_fn: Callable[..., jax.Array] = adv.gac.as_they_are,
    **controller,
) -> adv.Algorithm:
    """A mixture whose share follows noise and mismatch (arXiv:2605.26184, PAPER: code).

    Args:
      clip: of the GRPO term.
      weight_fn: `supervised.uncertainty`, or `supervised.unit` for "w/o phi".
      prior: step -> share; `README_PRIOR` rises to 0.85 in 200 steps and falls to 0.15
        in the next 800 along a cosine. None follows the measurements alone.
      trim, scale_fn: see `advantage.gac.gac_proxies`.
      **controller: see `advantage.gac.gac_controller`.
    """
    check.number("clip", clip, low=0, high=1)
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
            advantage=adv.chain(
                adv.restrict_members(Source.OWN), adv.center_by_group()
            ),
            weighting=adv.chain(
                _OWN,
                adv.keep_prompts(lambda solved: solved > gate),
                adv.constant_sum(max_tokens),
            ),
            loss_fn=ratio.unclipped_ratio(),
        ),
        sft=adv.Term(
            weighting=adv.chain(
                adv.keep_stored(),
                adv.keep_prompts(lambda solved: ~(solved > gate)),
                adv.token_mean(),
                adv.scale_weight(coefficient),
            ),
            loss_fn=surrogate.nll(),
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
        adv.keep_rows(adv.filter.is_hint), adv.token_mean(), adv.scale_weight(hint)
    )
    return adv.algorithm(
        policy=_grpo(clip),
        hint=adv.Term(weighting=hints, loss_fn=surrogate.nll()),
        reference=adv.Term(weighting=own(reference), loss_fn=kl.kl_k3()),
        entropy=adv.Term(weighting=own(entropy), loss_fn=kl.entropy_bonus()),
    )
