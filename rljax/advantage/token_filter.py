"""Filters that compare tokens of a whole minibatch under the current policy.

They stand in `weighting=` and change `weight` alone. Before a reduction the divisor
counts the kept tokens; after it the divisor counts all. Each docstring says where its
paper stands. A token is valid if it has a weight. Selections carry no gradient.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, keys, numerics
from rljax.advantage import order
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Credit, Rollout


def _keep(credit: Credit, kept: jax.Array) -> Credit:
    valid = credit.weighs
    share = numerics.masked_mean((valid & ~kept).astype(jnp.float32), valid)
    weight = jnp.where(kept, credit.weight, 0.0)
    return credit.replace(weight=weight).log(dropped_share=share)


def low_probability(rare: jax.Array, valid: jax.Array) -> jax.Array:
    """STAPO's entropy quantile runs over rare rewarded tokens (v4, v5 of the paper)."""
    del valid
    return rare


def all_tokens(rare: jax.Array, valid: jax.Array) -> jax.Array:
    """STAPO's entropy quantile runs over every token (v1, v2 of the paper)."""
    del rare
    return valid


def silence_spurious(
    *,
    max_prob: ArrayLike = 0.002,
    entropy_quantile: ArrayLike = 0.75,
    population_fn: Callable[[jax.Array, jax.Array], jax.Array] = low_probability,
) -> AdvantageTransform:
    """Drops tokens that are rare, certain and rewarded (STAPO).

    Rare: A > 0 and pi(token) < max_prob, under the current policy. Dropped: the rare
    ones whose entropy lies below the quantile of the population's entropies, over the
    whole minibatch. Stands before `token_mean()`: the divisor counts what is left.

    Args:
      max_prob: a probability, fixed.
      entropy_quantile: a fraction, linearly interpolated.
      population_fn: (rare, valid) -> bool[P, G, T] whose entropies the quantile is of:
        `low_probability`, or `all_tokens` (the first versions, with quantile 0.8).

    Returns:
      A stateless transform; reads `rollout.current`, logs `dropped_share`.

    Source: arXiv:2602.15620 v4, sections on the S2T mask (PAPER; v1 SECONDARY;
      interpolation RECONSTRUCTED).
    """
    check.number("max_prob", max_prob, above=0, high=1)
    check.number("entropy_quantile", entropy_quantile, low=0, high=1)
    check.function("population_fn", population_fn, "rare, valid")

    def apply(credit, rollout):
        now, valid = rollout.current, credit.weighs
        rare = valid & (credit.advantage > 0) & (now.logp < jnp.log(max_prob))
        threshold = order.quantile_of_all(
            now.entropy, population_fn(rare, valid), entropy_quantile
        )
        return _keep(credit, valid & ~(rare & (now.entropy < threshold)))

    return stateless(apply)


def by_count(values: jax.Array, valid: jax.Array, fraction) -> jax.Array:
    """The max(1, ceil(fraction N)) largest: the released code of 20-Entropy."""
    count = jnp.maximum(jnp.ceil(order.share(valid, fraction)), 1)
    return order.largest(values, valid, count)


def by_quantile(values: jax.Array, valid: jax.Array, fraction) -> jax.Array:
    """All at or above the (1 - fraction) quantile: TRL's rule."""
    return valid & (values >= order.quantile_of_all(values, valid, 1 - fraction))


def keep_top_entropy(
    fraction: ArrayLike = 0.2,
    select_fn: Callable[..., jax.Array] = by_count,
) -> AdvantageTransform:
    """Keeps the fraction of the minibatch's tokens with the highest entropies.

    Before `token_mean()` the divisor counts kept tokens (the authors' code), after it
    all of them (the paper's equation and TRL): a factor of 1 / fraction in scale.

    Args:
      fraction: in (0, 1].
      select_fn: (values, valid, fraction) -> bool: `by_count` or `by_quantile`.

    Returns:
      A stateless transform; reads `rollout.current`, logs `dropped_share`.

    Source: arXiv:2506.01939; code Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR@6f5dda6f
      verl/workers/actor/dp_actor.py (PAPER).
    Variants: the code selects per microbatch.
    """
    check.number("fraction", fraction, above=0, high=1)
    check.function("select_fn", select_fn, "values, valid, fraction")

    def apply(credit, rollout):
        valid = credit.weighs
        return _keep(credit, select_fn(rollout.current.entropy, valid, fraction))

    return stateless(apply)


def covariance(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: (log pi - mean log pi) (A - mean A), means over valid tokens.

    Source: arXiv:2505.22617, eq. (10) (PAPER).
    Variants: the means are the minibatch's; the authors' code takes each microbatch's.
    """
    valid = credit.weighs
    logp = rollout.current.logp
    a = jnp.broadcast_to(credit.advantage, logp.shape)
    centred = logp - numerics.masked_mean(logp, valid)
    return jnp.where(valid, centred * (a - numerics.masked_mean(a, valid)), 0.0)


def keep_covariant(fraction: ArrayLike = 2e-3) -> AdvantageTransform:
    """Keeps the max(1, floor(fraction N)) tokens of largest covariance (KL-Cov).

    Stands in the penalty's own term, after the reduction: these tokens pay the penalty,
    and the divisor counts all tokens.

    Source: arXiv:2505.22617, eqs. (13)-(14); code PRIME-RL/Entropy-Mechanism-of-RL
      verl/trainer/ppo/core_algos.py (PAPER).
    """
    check.number("fraction", fraction, low=0, high=1)

    def apply(credit, rollout):
        valid = credit.weighs
        count = jnp.maximum(jnp.floor(order.share(valid, fraction)), 1)
        return _keep(credit, order.largest(covariance(credit, rollout), valid, count))

    return stateless(apply)


def drop_covariant(
    *,
    fraction: ArrayLike = 2e-4,
    low: ArrayLike = 1.0,
    high: ArrayLike = 5.0,
    clipped_fn: Callable[[Credit, Rollout], jax.Array],
    seed: ArrayLike = 0,
) -> AdvantageTransform:
    """Drops a few tokens at random among those of high covariance (Clip-Cov).

    Candidates have low < covariance < high and are not clipped already;
    max(1, floor(fraction N)) of them are drawn, all if there are fewer. Stands after
    `token_mean()`: the dropped stay in the divisor.

    The draw is keyed by seed, number of updates, prompt id, sample and position, so it
    does not depend on order, padding, sharding or microbatches, and a resumed run draws
    the same. Members of a population draw alike unless their seeds differ.

    Args:
      fraction: of the minibatch's valid tokens.
      low, high: bounds of the covariance, nats times advantage.
      clipped_fn: (credit, rollout) -> bool[P, G, T], what the surrogate clips.
      seed: an integer; may be traced.

    Returns:
      A transform whose state counts its updates, i32[]; reads `rollout.current`.

    Source: arXiv:2505.22617, eqs. (11)-(12); code as in `keep_covariant` (PAPER).
    """
    check.number("fraction", fraction, low=0, high=1)
    check.ordered(low=low, high=high)
    check.function("clipped_fn", clipped_fn, "credit, rollout")
    check.seed("seed", seed)

    def update(credit, rollout, count):
        valid = credit.weighs
        cov = covariance(credit, rollout)
        candidate = valid & (cov > low) & (cov < high) & ~clipped_fn(credit, rollout)
        key = keys.stream(jax.random.key(seed), keys.Stream.TOKEN_FILTER, count)
        noise = _noise(key, rollout.prompts.id, cov.shape)
        number = jnp.maximum(jnp.floor(order.share(valid, fraction)), 1)
        dropped = order.smallest(noise, candidate, number)
        return _keep(credit, valid & ~dropped), count + 1

    return AdvantageTransform(lambda: jnp.zeros((), jnp.int32), update)


def _noise(key, prompt_id, shape):
    """f32[P, G, T] in [0, 1); each entry depends on its identity, not on the shape."""

    def row(prompt, sample):
        # Threefry is counter-based: a longer draw begins with the shorter one.
        return jax.random.uniform(keys.at(key, prompt, sample), shape[2:], jnp.float32)

    rows = jax.vmap(jax.vmap(row, (None, 0)), (0, None))
    return rows(prompt_id, jnp.arange(shape[1]))
