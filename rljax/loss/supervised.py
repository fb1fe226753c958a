"""Supervised objectives as policy gradients.

Each raises a given token's log-probability with a coefficient `c = -dl/dlog p`; `p` is
the current probability of the token, `A` its advantage:

| loss function | c |
|---|---|
| `nll()` | 1 |
| `reweighted(nll(), probability)`: DFT | p |
| `reweighted(nll(), uncertainty)`: CHORD-phi | p (1 - p) |
| `reweighted(reinforce(), threshold(tau))`: GFT | A if p > tau, else A p |
| `reweighted(nll(), sequence_importance())`: iw-SFT | p / p_ref of the row |
| `ppo_clip(0.2, 0.28)` with A = 1: PSFT | p / p_old, 0 beyond the clip |
| `shaped_probability(gamma)`: LUFFY | A gamma p / (p + gamma)^2 |

A weight function multiplies the loss and leaves the divisor of the token mean as it is.
As a transform in `weighting` before the reduction it would change that divisor.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.types import Credit, LossFn, Rollout, TokenStats, measured_extra

WeightFn = Callable[[TokenStats, Credit, Rollout], jax.Array]
"""(now, credit, rollout) -> weight, broadcastable to f32[P, G, T]."""


def reweighted(loss_fn: LossFn, weight_fn: WeightFn) -> LossFn:
    """sg[weight] * loss: no gradient flows through the weight.

    Args:
      loss_fn: any loss function, usually `nll()` or `reinforce()`.
      weight_fn: (now, credit, rollout) -> broadcastable to f32[P, G, T]; a row's
        weights may depend on that row only.
    """
    check.function("loss_fn", loss_fn, "now, credit, rollout")
    check.function("weight_fn", weight_fn, "now, credit, rollout")

    def loss(now, credit, rollout):
        weight = jax.lax.stop_gradient(weight_fn(now, credit, rollout))
        return weight * loss_fn(now, credit, rollout)

    return loss


def unit(now: TokenStats, credit: Credit, rollout: Rollout) -> jax.Array:
    """1: plain SFT as a weight function."""
    del credit, rollout
    return jnp.ones_like(now.logp)


def probability(now: TokenStats, credit: Credit, rollout: Rollout) -> jax.Array:
    """p: DFT's weight, which ascends the token's probability.

    Source: Wu et al., arXiv:2508.05629; code yongliang-wu/DFT fsdp_dft_trainer.py
      (PAPER).
    """
    del credit, rollout
    return jnp.exp(now.logp)


def uncertainty(now: TokenStats, credit: Credit, rollout: Rollout) -> jax.Array:
    """p (1 - p): CHORD-phi's weight, largest where the policy is undecided.

    Source: arXiv:2508.11408; code Trinity-RFT chord_policy_loss.py (PAPER).
    """
    del credit, rollout
    return -jnp.exp(now.logp) * jnp.expm1(now.logp)


def threshold(
    tau: ArrayLike = 0.5,
    exceeds: Callable[[jax.Array, jax.Array], jax.Array] = jnp.greater,
) -> WeightFn:
    """1 where p exceeds tau, else p: GFT's dynamic coefficient rectification.

    grad log p = grad p / p, so unlikely tokens have large gradients. This weight keeps
    the factor 1 / p where it is below 1 / tau and replaces it by 1 elsewhere. The
    weight jumps at p = tau.

    Args:
      tau: a probability; 0 gives SFT, 1 or more gives DFT's weight.
      exceeds: (p, tau) -> bool: `jnp.greater` (the code: p = tau has weight p) or
        `jnp.greater_equal` (notes of the paper: p = tau has weight 1).

    Source: arXiv:2604.14258; code ZJU-OmniAI/GFT core_algos.py `compute_gft_loss`
      (PAPER).
    """
    check.number("tau", tau, low=0)
    check.function("exceeds", exceeds, "p, tau")

    def weight(now, credit, rollout):
        del credit, rollout
        p = jnp.exp(now.logp)
        return jnp.where(exceeds(p, jnp.asarray(tau, p.dtype)), 1.0, p)

    return weight


def sequence_importance(exponent: ArrayLike = 1.0, high: ArrayLike = 16.0) -> WeightFn:
    """min(exp(exponent * mean_t log(p / p_ref)), high) per row, f32[P, G, 1]: iw-SFT.

    Args:
      exponent: power of the row's geometric mean ratio; the authors use 1, their code's
        default is 2.
      high: upper bound of the weight.

    Source: arXiv:2507.12856; code emmyqin/iw_sft bounding_trainers.py (PAPER).
    """
    check.number("exponent", exponent)
    check.number("high", high, above=0, high=jnp.inf)

    def weight(now, credit, rollout):
        del credit
        log_ratio = now.logp - rollout.reference.logp
        mask = rollout.samples.mask
        mean = numerics.masked_mean(log_ratio, mask, -1, keepdims=True)
        return jnp.minimum(jnp.exp(numerics.bounded(exponent * mean)), high)

    return weight


def token_importance(low: ArrayLike = 0.2, high: ArrayLike = 1.8) -> WeightFn:
    """clip(p / p_ref, low, high) per token: the other weight in iw-SFT's code."""
    check.number("low", low, low=0)
    check.number("high", high, above=0, high=jnp.inf)
    check.ordered(low=low, high=high)

    def weight(now, credit, rollout):
        del credit
        log_ratio = numerics.bounded(now.logp - rollout.reference.logp)
        return jnp.clip(jnp.exp(log_ratio), low, high)

    return weight


def entropy_weight(coefficient: ArrayLike, exponent: ArrayLike) -> WeightFn:
    """coefficient * exp(exponent * H), H the row's mean entropy, nats; f32[P, G, 1].

    SRFT has (0.5, -1) on demonstrations and (0.1, +1) on rewarded samples.

    Source: arXiv:2506.19767; row mean as in the re-implementation
      TsinghuaC3I/Unify-Post-Training mix_actor.py (SECONDARY).
    """
    check.number("coefficient", coefficient, low=0)
    check.number("exponent", exponent)

    def weight(now, credit, rollout):
        del credit
        H = numerics.masked_mean(now.entropy, rollout.samples.mask, -1, keepdims=True)
        return coefficient * jnp.exp(exponent * H)

    return weight


def shaped_probability(gamma: ArrayLike = 0.1) -> LossFn:
    """-A p / (p + gamma): LUFFY's policy shaping of off-policy tokens.

    The coefficient A gamma p / (p + gamma)^2 is largest at p = gamma, so that unlikely
    tokens are learned. The behaviour probability is taken as 1; no old statistics are
    read.

    Source: arXiv:2504.14945; code ElliottYan/LUFFY mix_core_alg.py (PAPER).
    """
    check.number("gamma", gamma, above=0)
    # p / (p + gamma) is the logistic function of log p - log gamma.
    return lambda now, credit, rollout: (
        -credit.advantage * jax.nn.sigmoid(now.logp - jnp.log(gamma))
    )


def with_behaviour_prob_one(loss_fn: LossFn) -> LossFn:
    """The loss with old probabilities of 1, as is assumed for demonstrations."""
    check.function("loss_fn", loss_fn, "now, credit, rollout")

    def loss(now, credit, rollout):
        old = TokenStats(logp=jnp.zeros_like(now.logp))
        return loss_fn(now, credit, rollout.replace(old=old))

    return loss


def consistency() -> LossFn:
    """`now.extra["consistency"]` f32[P, G, T]: LfU's distance of hidden states.

    Raises:
      NotMeasured: when traced, if the learner's measure function does not supply it.
    """

    def loss(now, credit, rollout):
        del credit, rollout
        supplier = (
            "make the learner with rljax.learn.consistency: perturbing_learner or"
            " steering_learner"
        )
        return measured_extra(now, "now", "consistency", supplier)

    return loss
