"""Correction of the mismatch between the sampler's distribution and the learner's.

    d_t = log pi_old - log mu,   w = e^d

mu (`samples.behaviour`) is what the tokens were really drawn from: by another engine,
in another precision, after temperature and truncation. `old` is the learner's own
evaluation of the sampling weights. Both are constants of the batch, and so is w, which
multiplies the term's weight.

A correction is a pooling (`per_token`, `per_sequence`, `geometric`) of d into a ratio
and a bound on the ratio (`truncate`, `clip`, `mask_outside`), or a rejection of tokens
and rows by a statistic. Importance weights stand after the reduction, whose divisor
they leave alone; rejections before it renormalise.

Source: verl rollout_corr_helper.py and docs/algo/rollout_corr_math.md, OpenRLHF
  models/loss.py, TRL grpo_trainer.py (SECONDARY).
Variants: verl clamps d to +-20; here exponents have the upper bound alone
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


def mismatch(rollout: Rollout) -> jax.Array:
    """d f32[P, G, T], nats; 0 outside the mask."""
    d = rollout.old.logp - rollout.samples.behaviour.logp
    return jnp.where(rollout.samples.mask, d, 0.0)


def per_token(d: jax.Array, mask: jax.Array) -> jax.Array:
    """w_t = e^d f32[P, G, T]."""
    del mask
    return jnp.exp(numerics.bounded(d))


def per_sequence(d: jax.Array, mask: jax.Array) -> jax.Array:
    """Product of a row's w, f32[P, G, 1]."""
    total = jnp.sum(jnp.where(mask, d, 0.0), -1, keepdims=True)
    return jnp.exp(numerics.bounded(total))


def geometric(d: jax.Array, mask: jax.Array) -> jax.Array:
    """Geometric mean of a row's w, f32[P, G, 1]."""
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
    """w inside [low, high], ends kept, else 0: IcePop; TRL's "mask" modes."""
    check.number("low", low, low=0)
    check.number("high", high, above=0, high=jnp.inf)
    check.ordered(low=low, high=high)
    return lambda w: w * _inside(w, low, high)


def _inside(x, low, high) -> jax.Array:
    """f32: 1 in [low, high], 0 outside; NaN, which must show, where one of them is."""
    outside = (x < low) | (x > high)
    undecided = jnp.where(outside, 0.0, jnp.nan)
    return jnp.where((x >= low) & (x <= high), 1.0, undecided)


def untouched(w: jax.Array) -> jax.Array:
    """w unbounded."""
    return w


def weigh_by_importance(
    bound_fn: Callable[[jax.Array], jax.Array] | None = None,
    ratio_fn: Statistic = per_token,
) -> AdvantageTransform:
    """Multiplies the weight by bound(ratio): TIS by default, with a cap of 2.

    Stands after the reduction in `weighting=`. IcePop: `mask_outside(0.5, 5)`; TRL's
    default: `mask_outside(0, 3)` of `per_sequence`.

    Args:
      bound_fn: w -> w; None is `truncate(2.0)` (verl; 8 in the authors' 32B run).
      ratio_fn: (d, mask) -> w f32[P, G, T or 1].

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
    """`weigh_by_importance` divided by the weights' mean over tokens (or rows)."""
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
    """-d: its mean is KL(mu, pi_old)."""
    return -d


def k2(d: jax.Array) -> jax.Array:
    """d^2 / 2."""
    return 0.5 * d**2


def k3(d: jax.Array) -> jax.Array:
    """e^d - 1 - d: its mean is KL(mu, pi_old), never negative."""
    d = numerics.bounded(d)
    return jnp.expm1(d) - d


def row_sum(divergence_fn: Callable[[jax.Array], jax.Array]) -> Statistic:
    """A divergence's sum over each row, f32[P, G, 1]."""
    check.function("divergence_fn", divergence_fn, "d")
    return lambda d, mask: jnp.sum(
        jnp.where(mask, divergence_fn(d), 0.0), -1, keepdims=True
    )


def row_mean(divergence_fn: Callable[[jax.Array], jax.Array]) -> Statistic:
    """A divergence's mean over each row, f32[P, G, 1]."""
    check.function("divergence_fn", divergence_fn, "d")
    return lambda d, mask: numerics.masked_mean(
        divergence_fn(d), mask, -1, keepdims=True
    )


def row_max(divergence_fn: Callable[[jax.Array], jax.Array]) -> Statistic:
    """A non-negative divergence's maximum over each row, f32[P, G, 1]."""
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
    """Weight 0 where a statistic lies outside [low, high]; ends are kept.

    Chain several: all must pass. Before the reduction the rest is renormalised (verl);
    after it the divisor stays. There, with `weigh_by_importance(untouched)` beside it,
    this is OpenRLHF's `seq-mask-tis`, which leaves the token weights untruncated.

    Args:
      statistic_fn: (d, mask) -> f32[P, G, T or 1]: `per_token`, `per_sequence` or
        `geometric` (of w itself), or a `row_...` of `k2` or `k3`.

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
    """Scalars of a batch; rows without tokens do not count.

    kl_k1, kl_k3: KL(mu, pi_old) per token, nats. chi_squared, chi_squared_sequence:
    mean(w^2) - 1 over tokens, and over rows' products (a sample may be negative).
    perplexity_ratio: mean over rows of exp(-mean d). effective_share,
    effective_share_sequence: Kish's (sum w)^2 / (N sum w^2). gap_max: largest |d|.
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
    """Logs `mismatch/...` of each batch and changes nothing; for `advantage=`."""

    def apply(credit, rollout):
        found = mismatch_metrics(mismatch(rollout), rollout.samples.mask)
        found |= {"gap_max": Max(found["gap_max"])}
        return credit.log(**{f"mismatch/{k}": v for k, v in found.items()})

    return stateless(apply)


def corrected(
    algorithm: Algorithm, transform: AdvantageTransform | None = None
) -> Algorithm:
    """The algorithm, whose weights a correction changes last; logs the mismatch.

    For recipes that correct nothing themselves, where the sampler is by design not the
    policy. `old` must be measured: `program.actor(measure_old=)`.

    Args:
      transform: stateless, after every term's reduction; None is
        `weigh_by_importance()`.
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
