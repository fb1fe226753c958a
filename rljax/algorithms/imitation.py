"""Supervised recipes: SFT, DFT, ASFT, PSFT, iw-SFT, GCSL, LfU.

All learn from stored answers, whether a verifier finds them correct or not. The sampler
`rljax.rollout.mixed.stored_answers()` puts them into a rollout. Recipes that read
reference or old statistics say so.
"""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import check, loss
from rljax.types import LossFn

_NO_STEPS = adv.chain()


def _demonstrations(loss_fn: LossFn, *after, advantage=_NO_STEPS) -> adv.Term:
    return adv.Term(
        advantage=advantage,
        weighting=adv.chain(adv.keep_stored(), adv.token_mean(), *after),
        loss_fn=loss_fn,
    )


def sft() -> adv.Algorithm:
    """Token mean of -log p (SFT).

    Source: maximum likelihood (TEXTBOOK).
    """
    return adv.algorithm(sft=_demonstrations(loss.nll()))


def dft() -> adv.Algorithm:
    """Token mean of -sg[p] log p: Dynamic Fine-Tuning (DFT).

    Source: arXiv:2508.05629; code yongliang-wu/DFT fsdp_dft_trainer.py (PAPER).
    """
    return adv.algorithm(sft=_dft())


def _dft() -> adv.Term:
    return _demonstrations(loss.reweighted(loss.nll(), loss.supervised.probability))


def asft(anchor: ArrayLike = 0.05) -> adv.Algorithm:
    """DFT anchored by the forward KL from the reference (ASFT).

    tokmean[-sg[p] log p + anchor * KL(reference || policy)], the KL over the full
    vocabulary. Needs reference parameters, and
    `rljax.policy.divergence.against_reference(policy)` as the learner's measure
    function.

    Args:
      anchor: coefficient of the KL; 0.05 in the README, 0.1 in the script.

    Source: arXiv:2509.23753, eq. (6) (PAPER).
    """
    check.number("anchor", anchor, low=0)
    forward = loss.kl_forward_exact()
    return adv.algorithm(
        sft=_dft(), anchor=_demonstrations(forward, adv.scale_weight(anchor))
    )


def asft_sampled(anchor: ArrayLike = 0.1) -> adv.Algorithm:
    """ASFT with k3 at the demonstrated token in place of the KL (Palmyra x6).

    Demonstrated tokens are not samples of the policy, so this is a penalty and not an
    estimate of a KL. Needs reference parameters.

    Args:
      anchor: coefficient of the penalty.

    Source: Palmyra x6 (SECONDARY).
    """
    check.number("anchor", anchor, low=0)
    return adv.algorithm(
        sft=_dft(), anchor=_demonstrations(loss.kl_k3(), adv.scale_weight(anchor))
    )


def psft(*, low: ArrayLike = 0.2, high: ArrayLike = 0.28) -> adv.Algorithm:
    """Proximal SFT: PPO's clip with advantage 1 (PSFT).

    Needs `old` on demonstrations: `mixed.with_old(mixed.stored_answers(),
    policy.measure)`. On the first optimiser step of a batch the gradient is SFT's; the
    paper takes 8 steps per batch.

    Args:
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2508.17784 (PAPER).
    """
    return adv.algorithm(
        sft=_demonstrations(
            loss.ppo_clip(low, high), advantage=adv.assign_constant(1.0)
        )
    )


def iw_sft(weight_fn: loss.supervised.WeightFn | None = None) -> adv.Algorithm:
    """Importance-weighted SFT (iw-SFT).

    Needs reference parameters.

    Args:
      weight_fn: None is `loss.supervised.sequence_importance()`; the code's other
        weight is `loss.supervised.token_importance()`.

    Source: arXiv:2507.12856; code emmyqin/iw_sft bounding_trainers.py (PAPER).
    """
    if weight_fn is not None:
        check.function("weight_fn", weight_fn, "now, credit, rollout")
    else:
        weight_fn = loss.supervised.sequence_importance()
    return adv.algorithm(sft=_demonstrations(loss.reweighted(loss.nll(), weight_fn)))


def gcsl() -> adv.Algorithm:
    """Goal-conditioned supervised learning (GCSL).

    sum_i w_i mean_t(-log p) / sum_i w_i over pairs i of a sample and a goal.
    `rljax.data.relabel` makes the pairs, and their weights w in `data["weight"]`.

    Source: arXiv:2605.16345 (RECONSTRUCTED).
    """
    mean = adv.weighted_sequence_mean(_pair_weight)
    return adv.algorithm(
        sft=adv.Term(weighting=adv.chain(adv.keep_stored(), mean), loss_fn=loss.nll())
    )


def _pair_weight(rollout):
    if "weight" not in rollout.prompts.data:
        raise ValueError(
            'gcsl() needs prompts.data["weight"] f32[P], the prompts carry'
            f" {sorted(rollout.prompts.data)}; add it with relabel.with_weights."
        )
    return rollout.prompts.data["weight"][:, None]


def lfu(weight: ArrayLike = 5.0) -> adv.Algorithm:
    """SFT with a consistency term: Learning from the Undesirable (LfU).

    Needs a learner made by `rljax.learn.consistency`.

    Args:
      weight: coefficient of the consistency term; the authors' scripts have 5 with
        perturbed weights (LoRA), 0.1 with steering (RepS).

    Source: arXiv:2511.13052 (PAPER).
    """
    check.number("weight", weight, low=0)
    return adv.algorithm(
        sft=_demonstrations(loss.nll()),
        consistency=_demonstrations(loss.consistency(), adv.scale_weight(weight)),
    )
