"""Supervised recipes: SFT, DFT, ASFT, PSFT, iw-SFT, GCSL, LfU.

All learn from stored answers, of `loop.demonstrator()` or
`loop.actor(policy, mixed.stored_answers())`, whatever a verifier says of
them. Those that read reference or old statistics say so.
"""

import jax

from rljax import advantage as adv
from rljax import check
from rljax.advantage import mixing
from rljax.advantage.entropy import set_advantage
from rljax.loss import kl, supervised, surrogate

_AS_IT_IS = adv.chain()


def _demonstrations(loss_fn, *after, advantage=_AS_IT_IS) -> adv.Term:
    return adv.Term(
        loss_fn,
        advantage=advantage,
        weighting=adv.chain(mixing.keep_stored(), adv.token_mean(), *after),
    )


def sft() -> adv.Algorithm:
    """Token mean of -log p."""
    return adv.algorithm(sft=_demonstrations(surrogate.nll()))


def dft() -> adv.Algorithm:
    """Token mean of -sg[p] log p: Dynamic Fine-Tuning (arXiv:2508.05629, PAPER)."""
    return adv.algorithm(sft=_dft())


def _dft() -> adv.Term:
    return _demonstrations(
        supervised.rectified(surrogate.nll(), supervised.probability)
    )


def asft(anchor: jax.typing.ArrayLike = 0.05) -> adv.Algorithm:
    """DFT anchored by the forward KL from the reference (arXiv:2509.23753, eq. 6).

    tokmean[-sg[p] log p + anchor * KL(reference || policy)], over the full vocabulary
    (PAPER: code; the coefficient 0.05 of the README, the script's default is 0.1).
    Needs reference parameters and `policy.divergence.against_reference(policy)` as the
    learner's measure function.
    """
    check.number("anchor", anchor, low=0)
    forward = kl.kl_forward_exact()
    return adv.algorithm(
        sft=_dft(), anchor=_demonstrations(forward, adv.scale_weight(anchor))
    )


def asft_sampled(anchor: jax.typing.ArrayLike = 0.1) -> adv.Algorithm:
    """ASFT with k3 at the realised token in place of the KL (Palmyra x6, SECONDARY).

    Demonstrated tokens are not drawn from the policy: a penalty, not an estimate of a
    KL. Needs reference parameters in the state and
    `loop.actor(policy, mixed.stored_answers())`.
    """
    check.number("anchor", anchor, low=0)
    return adv.algorithm(
        sft=_dft(), anchor=_demonstrations(kl.kl_k3(), adv.scale_weight(anchor))
    )


def psft(*, low: float = 0.2, high: float = 0.28) -> adv.Algorithm:
    """Proximal SFT: PPO's clip with advantage 1 (arXiv:2508.17784, PAPER: code).

    Needs `old` on demonstrations,
    `mixed.with_old(mixed.stored_answers(), policy.measure)`; it acts from
    the second optimiser step on a batch on (the paper: 8 of 8 demonstrations).
    """
    return adv.algorithm(
        sft=_demonstrations(
            surrogate.clipped_ratio(low, high), advantage=set_advantage(1.0)
        )
    )


def iw_sft(weight_fn=None) -> adv.Algorithm:
    """Importance-weighted SFT (arXiv:2507.12856, PAPER: code).

    Args:
      weight_fn: None is `supervised.sequence_importance()`; the other form is
        `supervised.token_importance()`.

    Needs reference parameters in the state and
    `loop.actor(policy, mixed.stored_answers())`.
    """
    if weight_fn is not None:
        check.function("weight_fn", weight_fn, "now, credit, rollout")
    weight_fn = supervised.sequence_importance() if weight_fn is None else weight_fn
    return adv.algorithm(
        sft=_demonstrations(supervised.rectified(surrogate.nll(), weight_fn))
    )


def gcsl() -> adv.Algorithm:
    """Goal-conditioned supervised learning (arXiv:2605.16345, RECONSTRUCTED).

    sum_i w_i mean_t(-log p) / sum_i w_i over pairs of sample and goal; the pairs and
    their weights are made by `rljax.data.relabel`, `data["weight"]`.
    """
    reduction = mixing.weighted_sequence_mean(_pair_weight)
    return adv.algorithm(
        sft=adv.Term(
            surrogate.nll(), weighting=adv.chain(mixing.keep_stored(), reduction)
        )
    )


def _pair_weight(rollout):
    if "weight" not in rollout.prompts.data:
        raise ValueError(
            'gcsl() reads prompts.data["weight"] f32[P], the prompts carry'
            f" {sorted(rollout.prompts.data)}; add it with relabel.with_weights."
        )
    return rollout.prompts.data["weight"][:, None]


def lfu(weight: jax.typing.ArrayLike = 5.0) -> adv.Algorithm:
    """SFT with a consistency term: Learning from the Undesirable (arXiv:2511.13052).

    Needs a learner of `rljax.learn.consistency`. PAPER: scripts have weight 5 with
    perturbed weights (LoRA), 0.1 with steering (RepS).
    """
    check.number("weight", weight, low=0)
    return adv.algorithm(
        sft=_demonstrations(surrogate.nll()),
        consistency=_demonstrations(supervised.consistency(), adv.scale_weight(weight)),
    )
