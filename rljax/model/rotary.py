"""Rotary positions, half-split as in Llama, and how models stretch them."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check

# Each scaling has the same three members:
#   check()                    raises ValueError if a number is outside its range;
#   scale(frequency, theta)    the new frequencies, radians per position;
#   amplitude                  what cosines and sines are multiplied by.


class LinearScaling(NamedTuple):
    """All rotations slower by `factor`, at least 1 (Gemma 3 from 4B on).

    Source: kaiokendev; transformers, `_compute_linear_scaling_rope_parameters`
    (PAPER: code).
    """

    factor: float

    def check(self):
        check.number("factor", self.factor, low=1)

    def scale(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        del theta
        return frequency / self.factor

    @property
    def amplitude(self) -> float:
        return 1.0


class Llama3Scaling(NamedTuple):
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
        check.number("factor", self.factor, low=1)
        check.number("low_turns", self.low_turns, above=0)
        check.number("high_turns", self.high_turns, above=self.low_turns)
        check.count("original_positions", self.original_positions)

    def scale(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        del theta
        turns = self.original_positions * frequency / (2 * np.pi)
        kept = (turns - self.low_turns) / (self.high_turns - self.low_turns)
        kept = np.clip(kept, 0, 1)
        return frequency * (kept + (1 - kept) / self.factor)

    @property
    def amplitude(self) -> float:
        return 1.0


class YarnScaling(NamedTuple):
    """YaRN: slow rotations are stretched, and scores sharpened (Qwen beyond 32k).

    A pair that turns at least `fast_turns` times in `original_positions` positions
    keeps its frequency; one that turns at most `slow_turns` times has it divided by
    `factor`; between, the number of the pair interpolates linearly.

    Source: Peng et al., YaRN, arXiv:2309.00071, section 3; transformers,
    `_compute_yarn_parameters` (PAPER: code).

    factor: at least 1.
    original_positions: tokens that the model was first trained on.
    amplitude: of cosines and sines; the paper's is 0.1 ln(factor) + 1.
    fast_turns, slow_turns: `beta_fast` and `beta_slow`; slow < fast.
    whole: whether both limits are rounded outwards to whole pairs (`truncate`).
    """

    factor: float
    original_positions: int
    amplitude: float
    fast_turns: float = 32.0
    slow_turns: float = 1.0
    whole: bool = True

    def check(self):
        check.number("factor", self.factor, low=1)
        check.count("original_positions", self.original_positions)
        check.number("amplitude", self.amplitude, above=0)
        check.number("slow_turns", self.slow_turns, above=0)
        check.number("fast_turns", self.fast_turns, above=self.slow_turns)

    def scale(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        half = len(frequency)

        def pair(turns):  # the number of the pair that turns so often
            period = self.original_positions / (2 * math.pi * turns)
            return half * math.log(period) / math.log(theta)

        low, high = pair(self.fast_turns), pair(self.slow_turns)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        width = max(high - low, 0.001)  # one pair alone is a step
        stretched = np.clip((np.arange(half) - low) / width, 0, 1)
        return frequency * (1 - stretched + stretched / self.factor)


class LongScaling(NamedTuple):
    """LongRoPE: a factor for each pair of features (Phi-3 128k, Phi-4-mini).

    Texts of up to `original_positions` have the `short` factors, longer ones the
    `long`. The length of a text is known only when it ends, and then its keys are
    computed. So this decoder computes the short ones alone: `rotary_table` refuses more
    positions. The long ones are here to be saved.

    Source: Ding et al., LongRoPE, arXiv:2402.13753; transformers,
    `_compute_longrope_parameters` (PAPER: code).

    short, long: by which a pair turns slower, above 0; half the rotated width each.
    original_positions: tokens that the model was first trained on.
    amplitude: of cosines and sines.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_positions: int
    amplitude: float

    def check(self):
        for name, factors in (("short", self.short), ("long", self.long)):
            for factor in factors:
                check.number(name, factor, above=0)
        check.count("original_positions", self.original_positions)
        check.number("amplitude", self.amplitude, above=0)

    def scale(self, frequency: np.ndarray, theta: float) -> np.ndarray:
        del theta
        return frequency / np.asarray(self.short)


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | LongScaling


class Rope(NamedTuple):
    """How a layer rotates queries and keys.

    theta: base of the frequencies theta^(-2 i / D), radians per position; None rotates
      nothing.
    scaling: changes the frequencies; None leaves them.
    """

    theta: float | None
    scaling: RopeScaling | None = None


def rotary_table(num_positions: int, width: int, rope: Rope) -> jax.Array:
    """f32[positions, 2, D]: cosines and signed sines.

    Args:
      width: D, of the part of a head that is rotated.

    Raises:
      ValueError: when traced, if a `LongScaling` has fewer positions.
    """
    theta, scaling = rope
    half = width // 2
    frequency = np.zeros(half) if theta is None else theta ** (-np.arange(half) / half)
    if theta is not None and scaling is not None:
        frequency = scaling.scale(frequency, theta)
    if isinstance(scaling, LongScaling) and num_positions > scaling.original_positions:
        raise ValueError(
            "prompt and completion must have at most original_positions="
            f"{scaling.original_positions} tokens with LongRoPE, got {num_positions};"
            " shorten one of them."
        )
    angle = np.arange(num_positions)[:, None] * frequency
    cos, sin = np.cos(angle), np.sin(angle)
    table = np.stack(
        [np.concatenate([cos, cos], -1), np.concatenate([-sin, sin], -1)], 1
    )
    if scaling is not None:
        table = table * scaling.amplitude
    # XLA:CPU: without the barrier, every fusion that reads the table computes the sines
    # again.
    return jax.lax.optimization_barrier(jnp.asarray(table, jnp.float32))


def rotate(x: jax.Array, table: jax.Array) -> jax.Array:
    """Rotary embedding of x [..., T, H] by rows of `rotary_table` [..., T, 2, D].

    Where a head is wider than the table, the rest of it is not rotated.
    """
    width = table.shape[-1]
    if width < x.shape[-1]:
        rest = x[..., width:]
        return jnp.concatenate([rotate(x[..., :width], table), rest], -1)
    swapped = x.reshape(*x.shape[:-1], 2, -1)[..., ::-1, :].reshape(x.shape)
    table = table.astype(x.dtype)
    return x * table[..., 0, :] + swapped * table[..., 1, :]
