"""Importance weights: correct for a sampler whose distribution is not the learner's.

    d_t = log pi_old - log mu,   w = e^d

mu (`samples.behaviour`) is the distribution that the tokens were really drawn from:
another engine, another precision, after temperature and truncation. pi_old (`old`) is
the learner's own evaluation of the sampling weights. Both are constants of the batch.
So is w, which multiplies the term's weight.

A correction either pools d into a ratio (`per_token`, `per_sequence`, `geometric`) and
bounds the ratio (`truncate`, `clip`, `mask_outside`), or it rejects tokens and rows by
a statistic of d. Place importance weights after the reduction: they must not change its
divisor. Rejections before the reduction renormalise over the rest.

Source: verl rollout_corr_helper.py and docs/algo/rollout_corr_math.md, OpenRLHF
  models/loss.py, TRL grpo_trainer.py (SECONDARY).
Variants: verl clamps d to +-20; here exponents have only the upper bound
  (`numerics.bounded`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, Algorithm, stateless
from rljax.metric import Max
from rljax.types import Rollout

Statistic = Callable[[jax.Array, jax.Array], jax.Array]
"""(d f32[P, G, T], mask bool[P, G, T]) -> f32[P, G, T or 1]."""


def mismatch(rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: d = log pi_old - log mu, nats; 0 outside the mask."""
    d = rollout.old.logp - rollout.samples.behaviour.logp
    return jnp.where(rollout.samples.mask, d, 0.0)


def per_token(d: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[P, G, T]: w_t = e^d."""
    del mask
    return jnp.exp(numerics.bounded(d))


def per_sequence(d: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[P, G, 1]: the product of a row's w."""
    total = jnp.sum(jnp.where(mask, d, 0.0), -1, keepdims=True)
    return jnp.exp(numerics.bounded(total))


def geometric(d: jax.Array, mask: jax.Array) -> jax.Array:
    """f32[P, G, 1]: the geometric mean of a row's w."""
    mean = numerics.masked_mean(d, mask, -1, keepdims=True)
    return jnp.exp(numerics.bounded(mean))


def truncate(cap: ArrayLike) -> Callable[[jax.Array], jax.Array]:
    """min(w, cap): truncated importance sampling."""
    check.number("cap", cap, above=0, high=jnp.inf)
    return lambda w: jnp.minimum(w, cap)


def clip(low: ArrayLike, high: ArrayLike) -> Callable[[jax.Array], jax.Array]:
    """w clamped to [low, high]."""
    check.number("low", low, low=0)
    check.number("high", high, above=0, high=jnp.inf)
    check.ordered(low=low, high=high)
    return lambda w: jnp.clip(w, low, high)


def mask_outside(low: ArrayLike, high: ArrayLike) -> Callable[[jax.Array], jax.Array]:
    """w where low <= w <= high, else 0: IcePop, TRL's "mask" modes."""
    check.number("low", low, low=0)
    check.number("high", high, above=0, high=jnp.inf)
    check.ordered(low=low, high=high)
    return lambda w: w * _inside(w, low, high)


def _inside(x, low, high) -> jax.Array:
    """f32: 1 in [low, high], 0 outside; NaN where x or a bound is NaN, to show it."""
    outside = (x < low) | (x > high)
    undecided = jnp.where(outside, 0.0, jnp.nan)
    return jnp.where((x >= low) & (x <= high), 1.0, undecided)


def untouched(w: jax.Array) -> jax.Array:
    """w itself: no bound."""
    return w


def weigh_by_importance(
    bound_fn: Callable[[jax.Array], jax.Array] | None = None,
    ratio_fn: Statistic = per_token,
) -> AdvantageTransform:
    """Multiplies the weight by bound(ratio); by default TIS with a cap of 2.

    Place it after the reduction in `weighting=`. IcePop is `mask_outside(0.5, 5)`;
    TRL's default is `mask_outside(0, 3)` with `per_sequence`.

    Args:
      bound_fn: w -> w; None is `truncate(2.0)` (verl; 8 in the authors' 32B run).
      ratio_fn: (d, mask) -> w f32[P, G, T or 1].

    Returns:
      A stateless transform; reads `rollout.old` and `samples.behaviour`.

    Source: fengyao.notion.site/off-policy-rl, as quoted by TRL and verl (SECONDARY).
    """
    if bound_fn is not None:
        check.function("bound_fn", bound_fn, "w")
    check.function("ratio_fn", ratio_fn, "d, mask")
    bound_fn = truncate(2.0) if bound_fn is None else bound_fn

    def apply(credit, rollout):
        w = bound_fn(ratio_fn(mismatch(rollout), rollout.samples.mask))
        return credit.replace(weight=credit.weight * w)

    return stateless(apply)


def weigh_by_normalised_importance(
    bound_fn: Callable[[jax.Array], jax.Array], ratio_fn: Statistic = per_token
) -> AdvantageTransform:
    """As `weigh_by_importance`, with the ratios divided by their mean.

    The mean runs over tokens, or over rows if `ratio_fn` returns [P, G, 1].
    """
    check.function("bound_fn", bound_fn, "w")
    check.function("ratio_fn", ratio_fn, "d, mask")

    def apply(credit, rollout):
        mask = rollout.samples.mask
        w = bound_fn(ratio_fn(mismatch(rollout), mask))
        valid = mask if w.shape == mask.shape else jnp.any(mask, -1, keepdims=True)
        w = numerics.safe_divide(w, numerics.masked_mean(w, valid))
        return credit.replace(weight=credit.weight * w)

    return stateless(apply)


def k1(d: jax.Array) -> jax.Array:
    """-d: its mean over samples of mu estimates KL(mu, pi_old)."""
    return -d


def k2(d: jax.Array) -> jax.Array:
    """d^2 / 2."""
    return 0.5 * d**2


def k3(d: jax.Array) -> jax.Array:
    """e^d - 1 - d: never negative; its mean estimates KL(mu, pi_old)."""
    d = numerics.bounded(d)
    return jnp.expm1(d) - d


def row_sum(divergence_fn: Callable[[jax.Array], jax.Array]) -> Statistic:
    """The statistic that sums a divergence over each row, f32[P, G, 1]."""
    check.function("divergence_fn", divergence_fn, "d")
    return lambda d, mask: jnp.sum(
        jnp.where(mask, divergence_fn(d), 0.0), -1, keepdims=True
    )


def row_mean(divergence_fn: Callable[[jax.Array], jax.Array]) -> Statistic:
    """The statistic that averages a divergence over each row, f32[P, G, 1]."""
    check.function("divergence_fn", divergence_fn, "d")
    return lambda d, mask: numerics.masked_mean(
        divergence_fn(d), mask, -1, keepdims=True
    )


def row_max(divergence_fn: Callable[[jax.Array], jax.Array]) -> Statistic:
    """The statistic that takes a non-negative divergence's maximum over each row,
    f32[P, G, 1].
    """
    check.function("divergence_fn", divergence_fn, "d")
    return lambda d, mask: jnp.max(
        jnp.where(mask, divergence_fn(d), 0.0), -1, keepdims=True
    )


def reject(
    statistic_fn: Statistic,
    *,
    low: ArrayLike = -jnp.inf,
    high: ArrayLike = jnp.inf,
) -> AdvantageTransform:
    """Weight 0 where a statistic lies outside [low, high].

    With several in a chain a token must pass all. Before the reduction the divisor
    counts what is left (verl); after it the divisor stays. OpenRLHF's `seq-mask-tis`
    rejects after the reduction and adds `weigh_by_importance(untouched)`, so that the
    token weights are not truncated.

    Args:
      statistic_fn: (d, mask) -> f32[P, G, T or 1]: `per_token`, `per_sequence` or
        `geometric` for w itself, or `row_sum`, `row_mean`, `row_max` of `k2` or `k3`.
      low, high: bounds of the statistic, both allowed.

    Returns:
      A stateless transform; reads `rollout.old` and `samples.behaviour`, logs
      `rejected_share` of the tokens with weight.

    Variants: verl's bounds on k1 bound mu / pi_old, the inverse of w. Here they bound
      w; `lambda d, mask: per_token(-d, mask)` gives verl's.
    """
    check.function("statistic_fn", statistic_fn, "d, mask")
    check.ordered(low=low, high=high)

    def apply(credit, rollout):
        valid = credit.weighs
        s = statistic_fn(mismatch(rollout), rollout.samples.mask)
        inside = _inside(s, low, high)
        kept = valid & (inside > 0)
        share = numerics.masked_mean((valid & ~kept).astype(jnp.float32), valid)
        weight = jnp.where(valid, credit.weight * inside, 0.0)
        return credit.replace(weight=weight).log(rejected_share=share)

    return stateless(apply)


def mismatch_metrics(d: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Scalars f32[] of a batch; rows without tokens do not count.

    kl_k1, kl_k3: KL(mu, pi_old) per token, nats.
    chi_squared, chi_squared_sequence: mean(w^2) - 1 over tokens, and over the rows'
      products (the estimate may be negative).
    perplexity_ratio: mean over rows of exp(-mean d).
    effective_share, effective_share_sequence: (sum w)^2 / (N sum w^2), Kish's effective
      sample size as a fraction of N tokens or rows.
    gap_max: largest |d|, nats.
    """
    rows = jnp.any(mask, -1, keepdims=True)
    w, sequence = per_token(d, mask), per_sequence(d, mask)

    def effective(w, valid):
        mean = numerics.masked_mean(w, valid)
        return numerics.safe_divide(mean**2, numerics.masked_mean(w**2, valid))

    return {
        "kl_k1": numerics.masked_mean(k1(d), mask),
        "kl_k3": numerics.masked_mean(k3(d), mask),
        "chi_squared": numerics.masked_mean(w**2, mask) - 1,
        "chi_squared_sequence": numerics.masked_mean(sequence**2, rows) - 1,
        "perplexity_ratio": numerics.masked_mean(geometric(-d, mask), rows),
        "effective_share": effective(w, mask),
        "effective_share_sequence": effective(sequence, rows),
        "gap_max": jnp.max(jnp.where(mask, jnp.abs(d), 0.0)),
    }


def log_mismatch() -> AdvantageTransform:
    """Changes nothing; logs `mismatch_metrics` of each batch; for `advantage=`."""

    def apply(credit, rollout):
        found = mismatch_metrics(mismatch(rollout), rollout.samples.mask)
        found |= {"gap_max": Max(found["gap_max"])}
        return credit.log(**{f"mismatch/{k}": v for k, v in found.items()})

    return stateless(apply)


def corrected(
    algorithm: Algorithm, transform: AdvantageTransform | None = None
) -> Algorithm:
    """The algorithm with an importance correction after the weighting of every term.

    Use it if the sampler differs from the policy by design and the recipe does not
    correct for that itself. The learner's policy must measure `old`:
    `program.actor(measure_old=)`. Logs the mismatch.

    Args:
      algorithm: any algorithm.
      transform: a stateless correction; None is `weigh_by_importance()`.
    """
    check.kind("algorithm", algorithm, Algorithm, "algorithms.grpo()")
    if transform is not None:
        check.kind("transform", transform, AdvantageTransform, "weigh_by_importance()")
    chosen = weigh_by_importance() if transform is None else transform

    def credit(rollout, state):
        credits, state, metrics = algorithm.credit(rollout, state)
        logged, _ = log_mismatch().update(credits[0], rollout, ())
        return credits, state, metrics | logged.metrics

    def weigh(credits, rollout, state):
        credits, state, metrics = algorithm.weigh(credits, rollout, state)
        credits = tuple(chosen.update(c, rollout, ())[0] for c in credits)
        return jax.lax.stop_gradient(credits), state, metrics

    return algorithm._replace(credit=credit, weigh=weigh)
