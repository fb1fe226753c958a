"""Surrogates whose ratio belongs to a sequence or a turn instead of a token.

d = log(pi / pi_old) of a token; |y| is the number of tokens of a row; A is the
advantage; sg[x] is x without its gradient. Averages run over the tokens under the mask,
also over those whose weight is 0. A loss per row is f32[P, G, 1]; the reduction divides
it among the row's tokens.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rljax import check, numerics
from rljax.loss.surrogate import clip_loss, is_clipped, log_ratio
from rljax.types import LossFn, Rollout


def _row_mean(d, mask):
    return numerics.masked_mean(d, mask, -1, keepdims=True)


def gspo(low: ArrayLike = 3e-4, high: ArrayLike = 4e-4) -> LossFn:
    """PPO's clip of the row's geometric mean ratio s = exp(mean d) (GSPO).

    Use it with `sequence_mean()`. The coefficient of each token is A s / |y|.

    Args:
      low, high: distances of the ratio's bounds from 1.

    Source: arXiv:2507.18071 (SECONDARY; verl, TRL, ms-swift, OpenRLHF agree).
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        mean = _row_mean(log_ratio(now, rollout), rollout.samples.mask)
        s = jnp.exp(numerics.bounded(mean))
        return clip_loss(s, credit.advantage, low, high)

    return loss


def gspo_token(low: ArrayLike = 3e-4, high: ArrayLike = 4e-4) -> LossFn:
    """GSPO with a gradient per token: s_t = sg[s] pi / sg[pi] (GSPO-token).

    If all tokens of a row have the same advantage, value and gradient are those of
    `gspo`. Here advantages may differ between tokens.

    Args:
      low, high: distances of the ratio's bounds from 1.
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        mean = _row_mean(log_ratio(now, rollout), rollout.samples.mask)
        own = now.logp - jax.lax.stop_gradient(now.logp)
        s = jnp.exp(numerics.bounded(jax.lax.stop_gradient(mean) + own))
        return clip_loss(s, credit.advantage, low, high)

    return loss


LogRatio = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""(d f32[P, G, T], advantage, mask) -> log ratio of each row, f32[P, G, 1]."""


def _clip_by_sign(d, a, low, high):
    # Masks, not minimum and maximum: a log-ratio on a bound keeps its whole gradient.
    moved = jnp.abs(d) > numerics.ROUNDING  # see `surrogate.is_clipped`
    over = (a > 0) & (d > high) & moved
    under = (a < 0) & (d < -low) & moved
    return jnp.where(over, high, jnp.where(under, -low, d))


def mean_of_clipped(low: ArrayLike = 0.4, high: ArrayLike = 0.4) -> LogRatio:
    """Row mean of d clipped per token: at `high` if A > 0, at -`low` if A < 0."""
    check.number("low", low, low=0)
    check.number("high", high, low=0)
    return lambda d, a, mask: _row_mean(_clip_by_sign(d, a, low, high), mask)


def mean_unclipped(d: jax.Array, a: jax.Array, mask: jax.Array) -> jax.Array:
    """Ablation: row mean of d without a clip."""
    del a
    return _row_mean(d, mask)


def sum_of_clipped(low: ArrayLike = 0.4, high: ArrayLike = 0.4) -> LogRatio:
    """Ablation: the row sum where `mean_of_clipped` takes the mean."""
    check.number("low", low, low=0)
    check.number("high", high, low=0)
    return lambda d, a, mask: jnp.sum(
        jnp.where(mask, _clip_by_sign(d, a, low, high), 0.0), -1, keepdims=True
    )


def clipped_sum(bound: ArrayLike = 0.4) -> LogRatio:
    """Ablation `seqclip`: the row sum of d, clipped to +-bound, divided by |y|."""
    check.number("bound", bound, above=0)

    def log_s(d, a, mask):
        del a
        total = jnp.sum(jnp.where(mask, d, 0.0), -1, keepdims=True)
        length = jnp.sum(mask, -1, keepdims=True, dtype=jnp.float32)
        return numerics.safe_divide(jnp.clip(total, -bound, bound), length)

    return log_s


def gmpo(log_ratio_fn: LogRatio | None = None) -> LossFn:
    """-A s with s the geometric mean of clipped token ratios (GMPO).

    Use it with `sequence_mean()`. The coefficient is A s / |y| for tokens that are not
    clipped and 0 for clipped ones, which still count in |y|. A row without tokens has
    loss 0.

    Args:
      log_ratio_fn: (d, advantage, mask) -> log s f32[P, G, 1]; None is
        `mean_of_clipped(0.4, 0.4)`, ratios in (e^-0.4, e^0.4).

    Source: arXiv:2507.20673; code callsys/GMPO train_zero_math_gmpo.py (PAPER).
    Variants: the code's ablations are `mean_unclipped`, `clipped_sum` and
      `sum_of_clipped`.
    """
    if log_ratio_fn is not None:
        check.function("log_ratio_fn", log_ratio_fn, "d, advantage, mask")
    log_s = mean_of_clipped() if log_ratio_fn is None else log_ratio_fn

    def loss(now, credit, rollout):
        mask, a = rollout.samples.mask, credit.advantage
        s = jnp.exp(numerics.bounded(log_s(log_ratio(now, rollout), a, mask)))
        return -a * jnp.where(jnp.any(mask, -1, keepdims=True), s, 0.0)

    return loss


def turns(rollout: Rollout) -> jax.Array:
    """i32[P, G, T]: index of each token's turn, from 0.

    A turn is a contiguous run of the mask; the environment's text between two turns is
    a hole. Outside the mask the index means nothing.
    """
    mask = rollout.samples.mask
    before = jnp.roll(mask, 1, -1).at[..., 0].set(False)
    return jnp.maximum(jnp.cumsum(mask & ~before, -1, dtype=jnp.int32) - 1, 0)


def turn_mean(d: jax.Array, mask: jax.Array, turn: jax.Array) -> jax.Array:
    """f32[P, G, T]: mean of d over each token's turn; gradients flow."""

    def row(d, mask, turn):
        size = d.shape[0]
        total = jax.ops.segment_sum(jnp.where(mask, d, 0.0), turn, size)
        count = jax.ops.segment_sum(mask.astype(d.dtype), turn, size)
        return numerics.safe_divide(total, count)[turn]

    return jax.vmap(jax.vmap(row))(d, mask, turn)


def turn_ratio(now, rollout) -> jax.Array:
    """f32[P, G, T]: w, the geometric mean of the token ratios of each token's turn."""
    d = log_ratio(now, rollout)
    mean = turn_mean(d, rollout.samples.mask, turns(rollout))
    return jnp.exp(numerics.bounded(mean))


def turn_ppo(
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> LossFn:
    """PPO's clip of each turn's geometric mean ratio w (Turn-PPO).

    Use it with `sequence_mean()` and advantages per token. Gradients flow through w. So
    all tokens of a turn k have the same coefficient: w_k times the sum of its unclipped
    A, divided by the turn's number of tokens.

    Args:
      low, high: distances of the ratio's bounds from 1.

    Source: arXiv:2511.20718 (SECONDARY; two notes agree).
    """
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        w = turn_ratio(now, rollout)
        return clip_loss(w, credit.advantage, low, high)

    return loss


def clipping_bias(
    ratio_fn: Callable[..., jax.Array] = turn_ratio,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.2,
) -> LossFn:
    """-w A on clipped tokens, else 0: its gradient is what the clip removes.

    The clipped gradient is the unclipped one minus this one, called C in ST-PPO (S-PPO
    with `token_ratio`). Gradients flow through w; which tokens are clipped is constant.

    Args:
      ratio_fn: (now, rollout) -> w f32[P, G, T]: `turn_ratio` or `token_ratio`.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2511.20718, lemma 4.2 (SECONDARY; gradients through w RECONSTRUCTED).
    Variants: sg[w] A log pi would not have this property for turns.
    """
    check.function("ratio_fn", ratio_fn, "now, rollout")
    check.number("low", low, low=0, high=1)
    check.number("high", high, low=0)

    def loss(now, credit, rollout):
        w, a = ratio_fn(now, rollout), credit.advantage
        return -jnp.where(is_clipped(w, a, low, high), w * a, 0.0)

    return loss
