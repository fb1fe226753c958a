"""FADE: Focal Advantage with Dynamic Entropy.

    A_i = (1 - p)^(alpha - 1) (r_i - p)            if r_i >= p
    A_i = (1 - p)^(alpha - 1) (r_i - p) / delta    if r_i <  p
    alpha = clip(3 (1 - p_hat) / (2 p_hat), 1, 3)
    delta = clip(1 + H_hat - H*, 0.3, 1)

`p` is the solve rate of the prompt's group, q = 1 - p. `p_hat` and `H_hat` are running
averages of the solve rate and of the policy's entropy in nats; `H*` is a target. The
masses are m_S = p q^alpha and m_F = m_S / delta: alpha moves the focus from easy to
hard prompts, delta sets the balance of successes and failures.

Source: Decugis, O'Brien, Bach, Synnaeve, Cohen, arXiv:2607.01490 v1 (formula SECONDARY,
  from one third-party reading; convention of the averages, scope of p and unit of H
  RECONSTRUCTED, each an argument here).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage import baseline, scale, solve_rate
from rljax.advantage.algebra import AdvantageTransform, chain, stateless
from rljax.advantage.controller import Controller, controlled
from rljax.metric import Fault
from rljax.types import Credit, Rollout, is_measured


class FadeState(NamedTuple):
    """Running averages; the same on all hosts, part of every checkpoint."""

    p_ema: jax.Array  # f32[] solve rate, fraction
    h_ema: jax.Array  # f32[] entropy, nats
    h_init: jax.Array  # f32[] entropy at the start, nats
    step: jax.Array  # i32[] updates so far


class FadeValue(NamedTuple):
    """What the controller sets, and the averages it is computed from; each f32[]."""

    alpha: jax.Array  # focus on hard prompts
    delta: jax.Array  # balance of successes and failures
    p_ema: jax.Array  # solve rate, fraction
    h_ema: jax.Array  # entropy, nats


class FadeMeasurement(NamedTuple):
    """What the controller sees of a rollout batch."""

    mean_reward: jax.Array  # f32[], fraction
    mean_entropy: jax.Array  # f32[], nats


def fade_controller(
    *,
    ema_rate: ArrayLike = 0.02,
    p_init: ArrayLike = 0.5,
    h_init: ArrayLike | None = None,
    entropy_target: ArrayLike | None = None,
    entropy_target_frac: ArrayLike = 0.5,
    alpha_gain: ArrayLike = 1.5,
    alpha_min: ArrayLike = 1.0,
    alpha_max: ArrayLike = 3.0,
    delta_min: ArrayLike = 0.3,
    delta_max: ArrayLike = 1.0,
    delta_slope: ArrayLike = 1.0,
) -> Controller:
    """FADE's controller: updates the averages, then computes alpha and delta from them.

    Args:
      ema_rate: weight of the new value, x <- (1 - rate) x + rate new. Read literally,
        the source says 0.98, which would smooth nothing.
      p_init: solve rate before the first batch, a fraction.
      h_init: initial entropy, nats; None takes the first measurement.
      entropy_target: H*, nats; None takes `entropy_target_frac` of the initial entropy.
      alpha_gain, alpha_min, alpha_max: alpha = clip(gain (1 - p) / p, min, max).
      delta_min, delta_max, delta_slope: delta = clip(1 + slope (H - H*), min, max).

    Returns:
      A controller from `FadeMeasurement` to `FadeValue`.
    """
    check.number("ema_rate", ema_rate, above=0, high=1)
    check.number("p_init", p_init, low=0, high=1)
    for name, nats in (("h_init", h_init), ("entropy_target", entropy_target)):
        if nats is not None:
            check.number(name, nats, low=0)
    check.number("entropy_target_frac", entropy_target_frac, low=0)
    check.number("alpha_gain", alpha_gain, above=0)
    check.number("alpha_min", alpha_min, low=0)
    check.number("delta_min", delta_min, above=0)
    check.number("delta_slope", delta_slope, low=0)
    check.ordered(delta_min=delta_min, delta_max=delta_max)
    check.ordered(alpha_min=alpha_min, alpha_max=alpha_max)

    def value(p, h, h0):
        p_safe = jnp.maximum(p, 1e-6)
        target = entropy_target_frac * h0 if entropy_target is None else entropy_target
        alpha = jnp.clip(alpha_gain * (1 - p) / p_safe, alpha_min, alpha_max)
        delta = jnp.clip(1 + delta_slope * (h - target), delta_min, delta_max)
        return FadeValue(alpha, delta, p, h)

    def init():
        p = jnp.asarray(p_init, jnp.float32)
        h = jnp.asarray(0.0 if h_init is None else h_init, jnp.float32)
        return value(p, h, h), FadeState(p, h, h, jnp.zeros((), jnp.int32))

    def update(measurement, state):
        mean_reward, mean_entropy = measurement
        p = (1 - ema_rate) * state.p_ema + ema_rate * mean_reward
        h = (1 - ema_rate) * state.h_ema + ema_rate * mean_entropy
        h0 = state.h_init
        if h_init is None:
            first = state.step == 0
            h = jnp.where(first, mean_entropy, h)
            h0 = jnp.where(first, mean_entropy, h0)
        return value(p, h, h0), FadeState(p, h, h0, state.step + 1)

    return Controller(init, update)


def group_rate(credit: Credit, reward: jax.Array, value: FadeValue) -> jax.Array:
    """The focal factor's p, f32[P, 1, 1]: each group's solve rate (the default)."""
    del value
    return solve_rate.of(reward, credit.member).p


def run_rate(credit: Credit, reward: jax.Array, value: FadeValue) -> jax.Array:
    """The focal factor's p, f32[]: the run's average solve rate, for all groups."""
    del credit, reward
    return value.p_ema


def unit_scale(alpha: jax.Array) -> jax.Array:
    """C = 1: FADE as the paper states it."""
    return jnp.ones_like(alpha)


def area_scale(alpha: jax.Array) -> jax.Array:
    """The C that keeps the mass's integral over p: (alpha+1)(alpha+2)/6.

    Source: the integral of p (1 - p)^alpha (DERIVED).
    """
    return (alpha + 1) * (alpha + 2) / 6


def peak_scale(alpha: jax.Array) -> jax.Array:
    """The C that keeps the mass's peak: (1+alpha)^(1+alpha) / (4 alpha^alpha).

    Source: the maximum of p (1 - p)^alpha, at p = 1 / (1 + alpha) (DERIVED).
    """
    return (1 + alpha) ** (1 + alpha) / (4 * alpha**alpha)


def scale_by_fade(
    controller: Controller | None = None,
    *,
    base: AdvantageTransform | None = None,
    focal_rate_fn: Callable[..., jax.Array] = group_rate,
    scale_fn: Callable[[jax.Array], jax.Array] = unit_scale,
    reward_range: tuple[float, float] = (0.0, 1.0),
) -> AdvantageTransform:
    """The FADE advantage, C (1 - p)^(alpha - 1) times the centred reward.

    Negative advantages are then divided by delta.

    Args:
      controller: from `FadeMeasurement` to `FadeValue`; None is `fade_controller()`.
      base: centres the reward; None is `center_by_group()`. A chain with
        `scale_by_group_std()` gives GRPO with FADE's factors, unlike the paper.
      focal_rate_fn: `group_rate` or `run_rate`, the p of the focal factor alone.
      scale_fn: C as a function of alpha: `unit_scale`, `area_scale` or `peak_scale`.
      reward_range: rewards are mapped from this range to [0, 1] first.

    Returns:
      A transform for `advantage=`, with a state. Reads rewards and the entropies of
      `rollout.old` (if unmeasured, the mean of -logp); changes `advantage`, logs alpha,
      delta and the averages, and counts `fault/reward_out_of_range`.
    """
    if controller is not None:
        check.kind("controller", controller, Controller, "fade_controller()")
    if base is not None:
        check.kind("base", base, AdvantageTransform, "center_by_group()")
    check.function("focal_rate_fn", focal_rate_fn, "credit, reward, value")
    check.function("scale_fn", scale_fn, "alpha")
    low, high = _bounds(reward_range)
    controller = fade_controller() if controller is None else controller
    base = baseline.center_by_group() if base is None else base
    unit = stateless(
        lambda c, r: c.replace(advantage=(c.advantage - low) / (high - low))
    )

    def unit_reward(rollout):
        return (rollout.verdict.reward[..., None] - low) / (high - low)

    def measure(credit, rollout):
        reward = numerics.masked_mean(unit_reward(rollout), credit.member)
        return FadeMeasurement(reward, mean_entropy(rollout))

    def focus(value):
        def apply(credit, rollout):
            reward = unit_reward(rollout)
            p = focal_rate_fn(credit, reward, value)
            factor = scale_fn(value.alpha) * scale.focal_factor(p, value.alpha - 1)
            outside = credit.member & ((reward < 0) | (reward > 1))
            credit = credit.replace(advantage=credit.advantage * factor)
            return credit.log(**{"fault/reward_out_of_range": Fault(jnp.sum(outside))})

        return stateless(apply)

    def make(value):
        return chain(unit, base, focus(value), scale.scale_negative(1 / value.delta))

    return controlled(make, controller, measure)


def _bounds(reward_range) -> tuple[float, float]:
    if not isinstance(reward_range, tuple) or len(reward_range) != 2:
        check.refuse("reward_range", "be a pair (low, high)", reward_range)
    low, high = reward_range
    check.number("reward_range[0]", low)
    check.number("reward_range[1]", high)
    if low >= high:
        raise ValueError(
            f"reward_range must be (low, high) with low < high, got {low, high};"
            " swap them."
        )
    return low, high


def mean_entropy(rollout: Rollout) -> jax.Array:
    """f32[]: token-mean entropy of the sampling policy under the mask, nats.

    If entropies were not measured, it is the sampled estimate, the mean of -logp.
    """
    old = rollout.old
    entropy = old.entropy if is_measured(old.entropy) else -old.logp
    return numerics.masked_mean(entropy, rollout.samples.mask)
