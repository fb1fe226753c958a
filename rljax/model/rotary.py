"""Rotary positions, half-split as in Llama, and Llama 3's scaling of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check


class RopeScaling(NamedTuple):
    """Llama 3's stretching of slow rotations, for texts longer than it was trained on.

    A pair of features that turns n times in `original_positions` positions keeps its
    frequency if n >= high_turns, has it divided by `factor` if n <= low_turns, and is
    interpolated linearly between.

    Source: Llama 3.1's config.json, `rope_type` "llama3"; transformers,
    modeling_rope_utils.py, `_compute_llama3_parameters` (PAPER: code).

    factor: at least 1.
    low_turns, high_turns: `low_freq_factor` and `high_freq_factor`; low < high.
    original_positions: tokens that the model was first trained on.
    """

    factor: float
    low_turns: float
    high_turns: float
    original_positions: int

    def check(self):
        """Raises ValueError if a number is outside its range."""
        check.number("factor", self.factor, low=1)
        check.number("low_turns", self.low_turns, above=0)
        check.number("high_turns", self.high_turns, above=self.low_turns)
        check.count("original_positions", self.original_positions)

    def scale(self, frequency: np.ndarray) -> np.ndarray:
        """The new frequencies, radians per position."""
        turns = self.original_positions * frequency / (2 * np.pi)
        kept = (turns - self.low_turns) / (self.high_turns - self.low_turns)
        kept = np.clip(kept, 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)


def rotary_table(
    num_positions: int,
    head_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
) -> jax.Array:
    """f32[positions, 2, D]: cosines and signed sines.

    Args:
      theta: base of the frequencies theta^(-2 i / D), radians per position.
      scaling: changes the frequencies; None leaves them.
    """
    half = head_dim // 2
    frequency = theta ** (-np.arange(half) / half)
    if scaling is not None:
        frequency = scaling.scale(frequency)
    angle = np.arange(num_positions)[:, None] * frequency
    cos, sin = np.cos(angle), np.sin(angle)
    table = np.stack(
        [np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)], 1
    )
    # XLA:CPU: without the barrier, every fusion that reads the table computes the sines
    # again.
    return jax.lax.optimization_barrier(jnp.asarray(table, jnp.float32))


def rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Rotary embedding of x [..., T, D] by rows of `rotary_table` [..., T, 2, D]."""
    swapped = x.reshape(*x.shape[:-1], 2, -1)[..., ::-1, :].reshape(x.shape)
    table = table.astype(x.dtype)
    return x * table[..., 0, :] + swapped * table[..., 1, :]
