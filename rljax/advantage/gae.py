"""Generalised advantage estimation over masks with holes, for a critic.

    delta_t = r_t + gamma V_next - V_t,   A_t = delta_t + gamma lambda A_next
    return_t = A_t + V_t

"next" is the next token the policy answers for: holes (tool output) cost no discount,
and the result is that of the sequence without them.

Source: Schulman et al., arXiv:1506.02438, eq. (16); holes as in verl `gae` (SECONDARY).
Variants: OpenRLHF zeroes reward and value at holes but recurses through them: a hole
  costs gamma and counts V = 0; TRL knows no holes. Tested against both.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Credit, NotMeasured, Rollout


def gae(reward, value, mask, gamma, lam, bootstrap=0.0):
    """Advantages and returns of value estimates, in parallel over tokens.

    Args:
      reward, value: f32[..., T]; read under the mask only.
      mask: bool[..., T].
      gamma, lam: discount and lambda, fractions; gamma may be f32[..., T].
      bootstrap: f32[..., 1] value of the state after the last token; 0 where it ended.

    Returns:
      (A, return), each f32[..., T], 0 outside the mask.
    """
    v = jnp.where(mask, value, 0.0)
    bootstrap = jnp.broadcast_to(bootstrap, (*v.shape[:-1], 1)).astype(v.dtype)
    later = _backward(jnp.where(mask, 0.0, 1.0), v, bootstrap)
    after = jnp.concatenate([later[..., 1:], bootstrap], -1)  # V of the next token
    delta = jnp.where(mask, reward + gamma * after - v, 0.0)
    decay = jnp.where(mask, gamma * lam, 1.0)
    a = jnp.where(mask, _backward(decay, delta, jnp.zeros_like(bootstrap)), 0.0)
    return a, a + v


def _backward(decay, gain, last):
    """x_t = gain_t + decay_t x_{t+1} with x_T = last; logarithmic depth."""

    def join(right, left):  # compositions of x -> g + d x
        return left[0] * right[0], left[1] + left[0] * right[1]

    axis = decay.ndim - 1
    d, g = jax.lax.associative_scan(join, (decay, gain), reverse=True, axis=axis)
    return g + d * last


def ended(rollout: Rollout) -> jax.Array:
    """f32[P, G, 1]: 0, no value after the last token, cut off or not (as verl, TRL)."""
    return jnp.zeros((*rollout.samples.mask.shape[:2], 1), jnp.float32)


def token_reward(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: the advantage so far, a row's single number at its last token.

    An advantage that is [P, G, T] already is a reward per token and stays.
    """
    mask = rollout.samples.mask
    if credit.advantage.shape[-1] > 1:
        return credit.advantage
    position = jnp.arange(mask.shape[-1])[None, None]
    last = jnp.max(jnp.where(mask, position, -1), -1, keepdims=True)
    return jnp.where(position == last, credit.advantage, 0.0)


def old_value(rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: the sampling policy's values, before each token."""
    if "value" not in rollout.old.extra:
        raise NotMeasured(
            "old.extra['value']",
            "samplers return no values: pass the actor measure_old, the measure"
            " function of a policy with a value head",
        )
    return rollout.old.extra["value"]


def _estimate(credit, rollout, gamma, lam, bootstrap_fn):
    value, mask = old_value(rollout), rollout.samples.mask
    reward = token_reward(credit, rollout)
    a, target = gae(reward, value, mask, gamma, lam, bootstrap_fn(rollout))
    return a, target, jnp.where(mask, value, 0.0)


def gae_advantage(
    gamma: jax.typing.ArrayLike = 1.0,
    lam: jax.typing.ArrayLike = 0.95,
    bootstrap_fn: Callable[[Rollout], jax.Array] = ended,
) -> AdvantageTransform:
    """Replaces rewards by GAE over the sampling policy's values; f32[P, G, T].

    Args:
      gamma: discount per policy token.
      lam: lambda; 1 is the Monte Carlo return minus the value.
      bootstrap_fn: rollout -> f32[P, G, 1], value after the last token.

    Returns:
      A stateless transform for `advantage=`; reads `rollout.old.extra["value"]`.
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lam", lam, low=0, high=1)
    check.function("bootstrap_fn", bootstrap_fn, "rollout")

    def apply(credit, rollout):
        a, _, _ = _estimate(credit, rollout, gamma, lam, bootstrap_fn)
        return credit.replace(advantage=a)

    return stateless(apply)


def value_target(
    gamma: jax.typing.ArrayLike = 1.0,
    lam: jax.typing.ArrayLike = 0.95,
    bootstrap_fn: Callable[[Rollout], jax.Array] = ended,
) -> AdvantageTransform:
    """Replaces rewards by GAE's returns: the value loss's target, f32[P, G, T].

    Logs `explained_variance` of the old values. Arguments as `gae_advantage`.
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lam", lam, low=0, high=1)
    check.function("bootstrap_fn", bootstrap_fn, "rollout")

    def apply(credit, rollout):
        _, target, value = _estimate(credit, rollout, gamma, lam, bootstrap_fn)
        share = explained_variance(target, value, rollout.samples.mask)
        return credit.replace(advantage=target).log(explained_variance=share)

    return stateless(apply)


def explained_variance(target, value, mask) -> jax.Array:
    """f32[]: 1 - Var(target - value) / Var(target) over the mask; 0 if that is 0 / 0.

    Variants: CleanRL gives NaN for constant targets, verl adds 1e-5 to the divisor and
      uses sample variances; 0 is ours (RECONSTRUCTED).
    """
    total = numerics.masked_var(target, mask)
    left = numerics.masked_var(target - value, mask)
    return jnp.where(total > 0, 1 - numerics.safe_divide(left, total), 0.0)
