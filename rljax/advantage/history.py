"""Advantages scaled by how frequent a solve rate has been of late (CurveRL).

    A_i = w (r_i - p),  w = f(p) / F(p)

f is the histogram of solve rates in (0, 1) over the last batches and F its inclusive
cumulative sum: where all lower rates are rare, w is near 1; above them it falls.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage import solve_rate
from rljax.advantage.algebra import AdvantageTransform


class HistoryState(NamedTuple):
    """Histograms of the last `window` batches, the oldest overwritten first.

    counts: i32[window, G + 1] groups per bin.
    step: i32[] batches so far.
    """

    counts: jax.Array
    step: jax.Array


def scale_by_history(num_samples: int, *, window: int = 10) -> AdvantageTransform:
    """A * mass[bin] / cdf[bin] of the group's solve rate among those of past batches.

    bin = floor(p (G + 1)), taken in integers. Each batch enters the history after its
    own weights are taken, so a rate not seen before weighs 0. While the history is
    empty (the first batch, or until some group is mixed: RECONSTRUCTED) a batch is
    weighed by its own histogram. Solve rates 0 and 1 never enter and get factor 0.

    Args:
      num_samples: G, samples per prompt; the histogram has G + 1 bins.
      window: batches remembered.

    Returns:
      A stateful transform; reads `verdict.correct`.

    Source: CurveRL (PAPER: authors' code, zhyzmath/CurveRL).
    """
    check.count("num_samples", num_samples, low=2)
    check.count("window", window)

    def init():
        counts = jnp.zeros((window, num_samples + 1), jnp.int32)
        return HistoryState(counts, jnp.zeros((), jnp.int32))

    def update(credit, state, rollout):
        if credit.advantage.shape[1] != num_samples:
            raise ValueError(
                f"scale_by_history({num_samples}) keeps one bin per sample and got an"
                f" advantage of shape {credit.advantage.shape} ([P, G, 1]); pass G as"
                " num_samples."
            )
        group = solve_rate.by_correct(rollout, credit.member)
        c, n = group.c.astype(jnp.int32), group.n.astype(jnp.int32)
        index = (c * (num_samples + 1)) // jnp.maximum(n, 1)
        bins = jnp.arange(num_samples + 1, dtype=jnp.int32)[None, None]
        chosen = (index == bins) & group.mixed  # [P, 1, G + 1]
        now = jnp.sum(chosen, (0, 1), dtype=jnp.int32)
        past = jnp.sum(state.counts, 0)
        past = jnp.where(jnp.sum(past) > 0, past, now).astype(jnp.float32)
        table = numerics.safe_divide(past, jnp.cumsum(past))
        factor = jnp.sum(jnp.where(chosen, table[None, None], 0.0), -1, keepdims=True)
        counts = state.counts.at[state.step % window].set(now)
        credit = credit.replace(advantage=credit.advantage * factor)
        return credit, HistoryState(counts, state.step + 1)

    return AdvantageTransform(init, update)
