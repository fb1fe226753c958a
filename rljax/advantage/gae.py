"""Generalised advantage estimation (GAE), for masks with holes.

    delta_t = r_t + gamma V_next - V_t,   A_t = delta_t + gamma lambda A_next
    return_t = A_t + V_t

"next" is the next token under the mask. Holes of the mask (tool output) cost no
discount: the result is that of the sequence without them.

Source: Schulman et al., arXiv:1506.02438, eq. (16); holes as in verl `gae` (SECONDARY).
Variants: OpenRLHF sets reward and value to 0 at holes but recurses through them, so
  that a hole costs gamma and counts as V = 0. TRL has no holes. Tested against both.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage.algebra import AdvantageTransform, stateless
from rljax.types import Credit, Rollout, old_value


def gae(reward, value, mask, gamma, lam, bootstrap=0.0):
    """Advantages and returns from value estimates, by a scan that is parallel over T.

    Args:
      reward, value: f32[..., T]; read under the mask only.
      mask: bool[..., T].
      gamma, lam: discount and lambda, fractions; gamma may be f32[..., T].
      bootstrap: f32[..., 1] value after the last token; 0 if the episode ended there.

    Returns:
      (A, return), each f32[..., T], 0 outside the mask.
    """
    v = jnp.where(mask, value, 0.0)
    bootstrap = jnp.broadcast_to(bootstrap, (*v.shape[:-1], 1)).astype(v.dtype)
    later = _backward((~mask).astype(v.dtype), v, bootstrap)
    after = jnp.concatenate([later[..., 1:], bootstrap], -1)  # V of the next token
    delta = jnp.where(mask, reward + gamma * after - v, 0.0)
    decay = jnp.where(mask, gamma * lam, 1.0).astype(v.dtype)
    a = jnp.where(mask, _backward(decay, delta, jnp.zeros_like(bootstrap)), 0.0)
    return a, a + v


def _backward(decay, gain, last):
    """x_t = gain_t + decay_t x_{t+1} with x_T = last; logarithmic depth."""

    def join(right, left):  # composes maps x -> g + d x, each a pair (d, g)
        return left[0] * right[0], left[1] + left[0] * right[1]

    axis = decay.ndim - 1
    d, g = jax.lax.associative_scan(join, (decay, gain), reverse=True, axis=axis)
    return g + d * last


def token_reward(credit: Credit, rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: the advantage so far as a reward per token.

    A [P, G, 1] advantage is paid at the row's last token; a [P, G, T] one is returned
    unchanged.
    """
    mask = rollout.samples.mask
    if credit.advantage.shape[-1] > 1:
        return credit.advantage
    position = jnp.arange(mask.shape[-1])[None, None]
    last = jnp.max(jnp.where(mask, position, -1), -1, keepdims=True)
    return jnp.where(position == last, credit.advantage, 0.0)


def _estimate(credit, rollout, gamma, lam):
    value, mask = old_value(rollout), rollout.samples.mask
    reward = token_reward(credit, rollout)
    a, target = gae(reward, value, mask, gamma, lam)
    return a, target, jnp.where(mask, value, 0.0)


def assign_gae(gamma: ArrayLike = 1.0, lam: ArrayLike = 0.95) -> AdvantageTransform:
    """Replaces rewards by GAE over the sampling policy's values; f32[P, G, T].

    Args:
      gamma: discount per token under the mask, a fraction.
      lam: lambda, a fraction; 1 gives the Monte Carlo return minus the value.

    Returns:
      A stateless transform for `advantage=`; reads `rollout.old.extra["value"]`.
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lam", lam, low=0, high=1)

    def apply(credit, rollout):
        a, _, _ = _estimate(credit, rollout, gamma, lam)
        return credit.replace(advantage=a)

    return stateless(apply)


def assign_value_target(
    gamma: ArrayLike = 1.0, lam: ArrayLike = 0.95
) -> AdvantageTransform:
    """Replaces rewards by GAE's returns, the targets of the value loss; f32[P, G, T].

    Logs `explained_variance` of the old values. Arguments as `assign_gae`.
    """
    check.number("gamma", gamma, low=0, high=1)
    check.number("lam", lam, low=0, high=1)

    def apply(credit, rollout):
        _, target, value = _estimate(credit, rollout, gamma, lam)
        share = explained_variance(target, value, rollout.samples.mask)
        return credit.replace(advantage=target).log(explained_variance=share)

    return stateless(apply)


def assign_return_to_go(discount: ArrayLike = 1.0) -> AdvantageTransform:
    """G_t = sum over tokens s >= t of discount^(s - t) r_s; f32[P, G, T].

    A [P, G, 1] advantage is a reward paid at the row's last token; a [P, G, T] one is
    used unchanged (with a KL penalty, say). Tokens outside the mask are skipped: they
    pay nothing, cost no discount and get 0.

    Args:
      discount: per token under the mask, a fraction.

    Variants: SkyRL ends the running sum at a token outside the mask. In completions
      with tool output the final reward then reaches only the last turn.
    """
    check.number("discount", discount, low=0, high=1)

    def apply(credit, rollout):
        reward, mask = token_reward(credit, rollout), rollout.samples.mask
        value = jnp.zeros(mask.shape, jnp.float32)
        returns, _ = gae(reward, value, mask, discount, 1.0)
        return credit.replace(advantage=returns)

    return stateless(apply)


def explained_variance(target, value, mask) -> jax.Array:
    """f32[]: 1 - Var(target - value) / Var(target), masked; 0 for constant targets.

    Args:
      target, value: f32[P, G, T].
      mask: bool[P, G, T].

    Source: CleanRL, verl (SECONDARY; the 0 RECONSTRUCTED).
    Variants: CleanRL gives NaN for constant targets; verl adds 1e-5 to the divisor and
      uses sample variances.
    """
    total = numerics.masked_var(target, mask)
    left = numerics.masked_var(target - value, mask)
    return jnp.where(total > 0, 1 - numerics.safe_divide(left, total), 0.0)
