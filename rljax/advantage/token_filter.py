"""Filters that compare the tokens of a whole minibatch under the current policy.

They belong into `weighting=` and change only `weight`. Before a reduction the divisor
counts the kept tokens; after it the divisor counts all. Each docstring says which of
the two its paper does. A token is valid if its weight is not 0. Selections carry no
gradient.
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
    """The population of STAPO's quantile: rare rewarded tokens (paper v4, v5)."""
    del valid
    return rare


def all_tokens(rare: jax.Array, valid: jax.Array) -> jax.Array:
    """The population of STAPO's quantile: every valid token (paper v1, v2)."""
    del rare
    return valid


def silence_spurious(
    *,
    max_prob: ArrayLike = 0.002,
    entropy_quantile: ArrayLike = 0.75,
    population_fn: Callable[[jax.Array, jax.Array], jax.Array] = low_probability,
) -> AdvantageTransform:
    """Drops improbable tokens of low entropy that were rewarded (STAPO).

    A token is rare if A > 0 and pi(token) < max_prob under the current policy. A rare
    token is dropped if its entropy is below a quantile of the entropies of a population
    of tokens, taken over the minibatch. Place it before `token_mean()`, so that the
    divisor counts what is left.

    Args:
      max_prob: a probability.
      entropy_quantile: a fraction; the quantile is linearly interpolated.
      population_fn: (rare, valid) -> bool[P, G, T], the tokens over which the quantile
        runs: `low_probability`, or `all_tokens` (paper v1 and v2, with quantile 0.8).

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
    """bool[P, G, T]: the max(1, ceil(fraction N)) largest (20-Entropy's code)."""
    count = jnp.maximum(jnp.ceil(order.share(valid, fraction)), 1)
    return order.largest(values, valid, count)


def by_quantile(values: jax.Array, valid: jax.Array, fraction) -> jax.Array:
    """bool[P, G, T]: all values at or above the (1 - fraction) quantile (TRL)."""
    return valid & (values >= order.quantile_of_all(values, valid, 1 - fraction))


def keep_top_entropy(
    fraction: ArrayLike = 0.2,
    select_fn: Callable[..., jax.Array] = by_count,
) -> AdvantageTransform:
    """Keeps the given fraction of the minibatch's tokens, those of highest entropy.

    Before `token_mean()` the divisor counts the kept tokens (the authors' code), after
    it all tokens (the paper's equation, TRL). The two differ by a factor 1 / fraction.

    Args:
      fraction: in (0, 1].
      select_fn: (values, valid, fraction) -> bool: `by_count` or `by_quantile`.

    Returns:
      A stateless transform; reads `rollout.current`, logs `dropped_share`.

    Source: arXiv:2506.01939; code Shenzhi-Wang/Beyond-the-80-20-Rule-RLVR@6f5dda6f
      verl/workers/actor/dp_actor.py (PAPER).
    Variants: the authors' code selects within each microbatch.
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
    Variants: here means run over the minibatch, in the authors' code over a microbatch.
    """
    valid = credit.weighs
    logp = rollout.current.logp
    a = jnp.broadcast_to(credit.advantage, logp.shape)
    centred = logp - numerics.masked_mean(logp, valid)
    return jnp.where(valid, centred * (a - numerics.masked_mean(a, valid)), 0.0)


def keep_covariant(fraction: ArrayLike = 2e-3) -> AdvantageTransform:
    """Keeps the max(1, floor(fraction N)) tokens of largest covariance (KL-Cov).

    Place it in the term of the KL penalty, after the reduction: only these tokens pay
    the penalty, while the divisor counts all tokens.

    Args:
      fraction: of the minibatch's N valid tokens.

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
    """Drops a few random tokens among those of high covariance (Clip-Cov).

    Candidates have low < covariance < high and are not clipped by the surrogate;
    max(1, floor(fraction N)) of them are drawn, or all if there are fewer. Place it
    after `token_mean()`, so that the divisor also counts the dropped tokens.

    The draw is keyed by seed, number of updates, prompt id, sample and position. So it
    does not depend on order, padding, sharding or microbatches, and a resumed run draws
    the same tokens. Runs of a population with equal seeds draw equal numbers.

    Args:
      fraction: of the minibatch's N valid tokens.
      low, high: bounds of the covariance, nats times advantage.
      clipped_fn: (credit, rollout) -> bool[P, G, T], tokens that the surrogate clips.
      seed: an integer in [0, 2**32); may be traced.

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
    """Uniform f32[P, G, T] in [0, 1) that depends on identities, not on the shape."""

    def row(prompt, sample):
        # Threefry is counter-based: a longer draw begins with the same numbers.
        return jax.random.uniform(keys.at(key, prompt, sample), shape[2:], jnp.float32)

    rows = jax.vmap(jax.vmap(row, (None, 0)), (0, None))
    return rows(prompt_id, jnp.arange(shape[1]))
