"""GAC: the share mu of supervised loss that is mixed into a reinforcement loss.

    mu* = (alpha D + s_r) / (D + s_s + s_r)

minimises E(mu) = (mu - alpha)^2 D + mu^2 s_s + (1 - mu)^2 s_r, the error of the mixed
gradient (1 - mu) g_r + mu g_s. D is the squared distance of the two gradients, s_s and
s_r are their variances. Cheap proxies estimate all three from token statistics; they
are averaged over optimiser steps.

Source: arXiv:2605.26184; code deepnovacore/GAC gac/controller.py (PAPER: code).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.advantage import filter, order
from rljax.advantage.controller import Controller
from rljax.types import Credit, Rollout

_FLOOR = 1e-8


class GacMeasurement(NamedTuple):
    """Proxies measured on one minibatch, f32[] each."""

    mismatch: jax.Array  # D
    sft_variance: jax.Array  # s_s
    rl_variance: jax.Array  # s_r


class GacValue(NamedTuple):
    """What the controller sets, and the closed form behind it."""

    mu: jax.Array  # f32[] share of the supervised loss, a fraction
    raw: jax.Array  # f32[] the closed form, before smoothing and bounds


class GacState(NamedTuple):
    """State of `gac_controller`."""

    mu: jax.Array  # f32[] the last applied share
    average: GacMeasurement  # running averages of the proxies
    last: jax.Array  # i32[] step of the last measurement that was used
    step: jax.Array  # i32[] optimiser steps so far


def optimal_share(m: GacMeasurement, alpha: ArrayLike = 0.5) -> jax.Array:
    """The closed form of mu*; for D = 0 it is inverse-variance weighting.

    Args:
      alpha: the share that would be right if both gradients were exact, a fraction.
    """
    total = m.mismatch + m.sft_variance + m.rl_variance + _FLOOR
    return (alpha * m.mismatch + m.rl_variance) / total


def gac_controller(
    *,
    alpha: ArrayLike = 0.5,
    keep: ArrayLike = 0.99,
    initial: ArrayLike = 0.5,
    low: ArrayLike = 0.05,
    high: ArrayLike = 0.9,
    max_change: ArrayLike = 0.01,
    every: int = 10,
    prior: Callable[[jax.Array], ArrayLike] | None = None,
    mismatch_cap: ArrayLike | None = None,
) -> Controller:
    """The bounded, smoothed controller of the mixing share.

    Args:
      alpha: see `optimal_share`. It is constant: the outer rule that the paper mentions
        for alpha is not in the released code.
      keep: fraction of the old value that each average, and the share, keep per update
        (the paper's beta).
      initial, low, high: first share and bounds, fractions.
      max_change: largest change of the share per optimiser step.
      every: optimiser steps between two measurements that are used.
      prior: step -> share, such as an optax schedule. The result is the mean of the
        prior's and the measured share (the code's lambda is 1/2). None uses the
        measured share alone.
      mismatch_cap: D is capped at this times s_s + s_r; None is no cap.

    Returns:
      A controller from `GacMeasurement` to `GacValue`.
    """
    check.number("alpha", alpha, low=0, high=1)
    check.number("keep", keep, low=0, high=1)
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0, high=1)
    check.ordered(low=low, initial=initial, high=high)
    check.number("max_change", max_change, above=0)
    check.count("every", every)
    if prior is not None:
        check.function("prior", prior, "step")
    if mismatch_cap is not None:
        check.number("mismatch_cap", mismatch_cap, above=0)

    def init():
        zero, step = jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32)
        mu = jnp.asarray(initial, jnp.float32)
        average = GacMeasurement(zero, zero, zero)
        return GacValue(mu, mu), GacState(mu, average, step, step)

    def update(measurement, state):
        first = state.step == 0
        due = first | (state.step - state.last >= every)

        def averaged(old, new):
            blended = jnp.where(first, new, keep * old + (1 - keep) * new)
            return jnp.where(due, blended, old)

        average = jax.tree.map(averaged, state.average, measurement)
        raw = optimal_share(_capped(average, mismatch_cap), alpha)
        wanted = jnp.clip(keep * state.mu + (1 - keep) * raw, low, high)
        if prior is not None:
            wanted = 0.5 * prior(state.step) + 0.5 * wanted
        change = jnp.clip(wanted - state.mu, -max_change, max_change)
        mu = jnp.clip(state.mu + change, low, high)
        last = jnp.where(due, state.step, state.last)
        return GacValue(mu, raw), GacState(mu, average, last, state.step + 1)

    return Controller(init, update)


def _capped(m: GacMeasurement, cap: ArrayLike | None) -> GacMeasurement:
    if cap is None:
        return m
    noise = m.sft_variance + m.rl_variance + _FLOOR
    return m._replace(mismatch=jnp.minimum(m.mismatch, cap * noise))


def as_they_are(coefficient: jax.Array, valid: jax.Array) -> jax.Array:
    """Compares raw coefficients, as the released code does."""
    del valid
    return coefficient


def z_scores(coefficient: jax.Array, valid: jax.Array) -> jax.Array:
    """Compares coefficients that are standardised over the batch's tokens.

    Source: the method note and README; the code does not (scope RECONSTRUCTED).
    """
    mean = numerics.masked_mean(coefficient, valid)
    variance = numerics.masked_var(coefficient, valid)
    return (coefficient - mean) / jnp.sqrt(variance + _FLOOR)


def gac_proxies(
    weight_fn: Callable[..., jax.Array],
    *,
    trim: float = 0.1,
    scale_fn: Callable[[jax.Array, jax.Array], jax.Array] = as_they_are,
) -> Callable[[tuple[Credit, ...], Rollout], GacMeasurement]:
    """The measure function for an algorithm whose first term is the reinforcement term.

    s_r: variance over sampled rows of their mean advantage. s_s: trimmed variance over
    stored rows of their mean -log p. D: mean over all rows of the token mean of
    (c_s - c_r)^2, where c_s = -w(p), and c_r = -A on sampled and 0 on stored rows. If a
    minibatch has no rows of a kind, its variance is 0; otherwise it is at least 1e-8.

    Args:
      weight_fn: the supervised term's weight, as `loss.reweighted` takes it.
      trim: fraction of rows left out at each end for s_s; none of fewer than 4 rows.
      scale_fn: `as_they_are` or `z_scores`.

    Returns:
      (credits, rollout) -> `GacMeasurement`; reads `rollout.current`.
    """
    check.function("weight_fn", weight_fn, "now, credit, rollout")
    check.number("trim", trim, low=0, below=0.5)
    check.function("scale_fn", scale_fn, "coefficient, valid")

    def measure(credits, rollout):
        credit, now = credits[0], rollout.current
        tokens = rollout.samples.mask
        filled = jnp.any(tokens, -1, keepdims=True)
        stored = filter.is_stored(rollout)[..., None] & filled
        own = ~stored & filled & credit.member

        advantage = jnp.broadcast_to(credit.advantage, tokens.shape)
        rl_rows = numerics.masked_mean(advantage, tokens, -1, keepdims=True)
        rl_variance = numerics.masked_var(rl_rows, own)
        nll = -numerics.masked_mean(now.logp, tokens, -1, keepdims=True)

        rows = stored | own
        valid = tokens & rows
        c_s = scale_fn(-weight_fn(now, credit, rollout), valid)
        c_r = scale_fn(jnp.where(own, -advantage, 0.0), valid)
        mismatch = numerics.masked_mean((c_s - c_r) ** 2, valid, -1, keepdims=True)
        return GacMeasurement(
            numerics.masked_mean(mismatch, rows),
            _floored(trimmed_variance(nll, stored, trim), stored),
            _floored(rl_variance, own),
        )

    return measure


def _floored(variance, rows):
    return jnp.where(jnp.any(rows), jnp.maximum(variance, _FLOOR), 0.0)


def trimmed_variance(values: jax.Array, mask: jax.Array, trim: float) -> jax.Array:
    """f32[]: biased variance without the `floor(trim n)` values at each end.

    With fewer than 4 values none is left out.
    """
    n = jnp.sum(mask, dtype=jnp.int32)
    k = jnp.floor(order.share(mask, trim)).astype(jnp.int32)
    k = jnp.where(n < 4, 0, k)
    ends = order.smallest(values, mask, k) | order.largest(values, mask, k)
    return numerics.masked_var(values, mask & ~ends)
