"""Supervised recipes: SFT, DFT, ASFT, PSFT, iw-SFT, GCSL, LfU.

All learn from stored answers (`loop.demonstrator` or `loop.actor(policy, mix.stored())`)
whatever a verifier says of them. Those that read reference or old statistics say so.
"""

import jax

from rljax.advantage import (
    Algorithm,
    Term,
    algorithm,
    chain,
    fill_advantage,
    keep_stored,
    scale_weight,
    token_mean,
    weighted_sequence_mean,
)
from rljax.loss import clipped_ratio, kl_k3, nll, supervised

_ANCHOR = (
    "make the learner with measure.remeasuring_learner(measure.anchored(policy), ...)"
)
_CONSISTENCY = (
    "make the learner with consistency.steering_learner, or with"
    " measure.remeasuring_learner(consistency.perturbed_weights(policy), ...)"
)


def _demonstrations(loss_fn, *after, advantage=chain()) -> Term:
    return Term(
        loss_fn,
        advantage=advantage,
        weighting=chain(keep_stored(), token_mean(), *after),
    )


def sft() -> Algorithm:
    """Token mean of -log p."""
    return algorithm(sft=_demonstrations(nll()))


def dft() -> Algorithm:
    """Token mean of -sg[p] log p: Dynamic Fine-Tuning (arXiv:2508.05629, PAPER: code)."""
    return algorithm(sft=_dft())


def _dft() -> Term:
    return _demonstrations(supervised.rectified(nll(), supervised.probability))


def asft(anchor: jax.typing.ArrayLike = 0.05) -> Algorithm:
    """DFT anchored by the forward KL from the reference (arXiv:2509.23753, eq. 6).

    tokmean[-sg[p] log p + anchor * KL(reference || policy)], over the full vocabulary
    (PAPER: code; the coefficient 0.05 of the README, the script's default is 0.1).
    Needs a learner with `measure.anchored` and reference parameters.
    """
    kl = supervised.extra("kl_reference", _ANCHOR)
    return algorithm(sft=_dft(), anchor=_demonstrations(kl, scale_weight(anchor)))


def asft_sampled(anchor: jax.typing.ArrayLike = 0.1) -> Algorithm:
    """ASFT with k3 at the realised token in place of the KL (Palmyra x6, SECONDARY).

    Demonstrated tokens are not drawn from the policy: a penalty, not an estimate of a
    KL. Needs reference parameters in the state and `loop.actor(policy, mix.stored())`.
    """
    return algorithm(sft=_dft(), anchor=_demonstrations(kl_k3(), scale_weight(anchor)))


def psft(*, low: float = 0.2, high: float = 0.28) -> Algorithm:
    """Proximal SFT: PPO's clip with advantage 1 (arXiv:2508.17784, PAPER: code).

    Needs `old` on demonstrations: `mix.measured(mix.stored(), policy.measure)`; it acts
    from the second optimiser step on a batch on (the paper: 8 of 8 demonstrations).
    """
    return algorithm(
        sft=_demonstrations(clipped_ratio(low, high), advantage=fill_advantage(1.0))
    )


def iw_sft(weight_fn=None) -> Algorithm:
    """Importance-weighted SFT (arXiv:2507.12856, PAPER: code).

    Args:
      weight_fn: None is `supervised.sequence_importance()`; the other form is
        `supervised.token_importance()`.

    Needs reference parameters in the state and `loop.actor(policy, mix.stored())`.
    """
    weight_fn = supervised.sequence_importance() if weight_fn is None else weight_fn
    return algorithm(sft=_demonstrations(supervised.rectified(nll(), weight_fn)))


def gcsl() -> Algorithm:
    """Goal-conditioned supervised learning (arXiv:2605.16345, RECONSTRUCTED).

    sum_i w_i mean_t(-log p) / sum_i w_i over pairs of sample and goal; the pairs and
    their weights are made by `rljax.relabel`, `data["weight"]`.
    """
    reduction = weighted_sequence_mean(_pair_weight)
    return algorithm(sft=Term(nll(), weighting=chain(keep_stored(), reduction)))


def _pair_weight(rollout):
    if "weight" not in rollout.prompts.data:
        raise ValueError(
            'gcsl() reads prompts.data["weight"] f32[P], the prompts carry'
            f" {sorted(rollout.prompts.data)}; add it with relabel.with_weights."
        )
    return rollout.prompts.data["weight"][:, None]


def lfu(weight: jax.typing.ArrayLike = 5.0) -> Algorithm:
    """SFT with a consistency term: Learning from the Undesirable (arXiv:2511.13052).

    Needs a learner of `rljax.consistency`. PAPER: scripts have weight 5 with perturbed
    weights (LoRA), 0.1 with steering (RepS).
    """
    states = supervised.extra("consistency", _CONSISTENCY)
    return algorithm(
        sft=_demonstrations(nll()),
        consistency=_demonstrations(states, scale_weight(weight)),
    )
