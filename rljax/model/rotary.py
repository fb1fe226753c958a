"""Rotary position embeddings in Llama's half-split layout, and their scalings."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check

# Each scaling has the same three members:
#   check()                    raises ValueError if a number is outside its range;
#   scale(frequency, theta)    returns the new frequencies, radians per position;
#   amplitude                  factor of cosines and sines.


class LinearScaling(NamedTuple):
    """Divides all frequencies by `factor`, at least 1 (Gemma 3 from 4B on).

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
    """Llama 3's scaling of low frequencies, for longer texts than in pre-training.

    Consider a pair of features that rotates n times in `original_positions` positions.
    If n >= high_turns, its frequency is kept; if n <= low_turns, it is divided by
    `factor`; between, it is interpolated linearly in n.

    Source: Llama 3.1's config.json, `rope_type` "llama3"; transformers,
    modeling_rope_utils.py, `_compute_llama3_parameters` (PAPER: code).

    factor: at least 1.
    low_turns, high_turns: `low_freq_factor` and `high_freq_factor`; low < high.
    original_positions: context length of pre-training, tokens.
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
    """YaRN: divides low frequencies and sharpens scores (Qwen beyond 32k tokens).

    Consider a pair of features that rotates n times in `original_positions` positions.
    If n >= fast_turns, its frequency is kept; if n <= slow_turns, it is divided by
    `factor`; between, it is interpolated linearly in the index of the pair.

    Source: Peng et al., YaRN, arXiv:2309.00071, section 3; transformers,
    `_compute_yarn_parameters` (PAPER: code).

    factor: at least 1.
    original_positions: context length of pre-training, tokens.
    amplitude: factor of cosines and sines; 0.1 ln(factor) + 1 in the paper.
    fast_turns, slow_turns: `beta_fast` and `beta_slow`; slow < fast.
    whole: whether both limits are rounded outwards to whole indices (`truncate`).
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

        def pair(turns):  # index of the pair that rotates `turns` times
            period = self.original_positions / (2 * math.pi * turns)
            return half * math.log(period) / math.log(theta)

        low, high = pair(self.fast_turns), pair(self.slow_turns)
        if self.whole:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        width = max(high - low, 0.001)  # equal limits give a step, not 0 / 0
        stretched = np.clip((np.arange(half) - low) / width, 0, 1)
        return frequency * (1 - stretched + stretched / self.factor)


class LongScaling(NamedTuple):
    """LongRoPE: a factor for each pair of features (Phi-3 128k, Phi-4-mini).

    Texts of up to `original_positions` tokens use the `short` factors, longer texts the
    `long` ones. A sampler cannot know in advance which keys a text will need, because
    its length is known only at its end. So this decoder uses the short factors only,
    and `rotary_table` refuses more positions. The long factors are kept for saving.

    Source: Ding et al., LongRoPE, arXiv:2402.13753; transformers,
    `_compute_longrope_parameters` (PAPER: code).

    short, long: divisors of the frequencies, above 0; one per pair of rotated features.
    original_positions: longest text that uses `short`, tokens.
    amplitude: factor of cosines and sines.
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
    """The rotary embedding of a layer.

    theta: base of the frequencies theta^(-2 i / D), radians per position; None: no
      rotation.
    scaling: changes the frequencies; None: unscaled.
    """

    theta: float | None
    scaling: RopeScaling | None = None


def rotary_table(num_positions: int, width: int, rope: Rope) -> jax.Array:
    """f32[num_positions, 2, D]: cosines and signed sines.

    Args:
      num_positions: rows of the table, tokens.
      width: D, the rotated features of a head.
      rope: base and scaling of the frequencies.

    Raises:
      ValueError: when traced, if a `LongScaling` allows fewer positions.
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
    """Rotates x [..., T, H] by rows of `rotary_table`, [..., T, 2, D] with D <= H.

    The last H - D features are not rotated.
    """
    width = table.shape[-1]
    if width < x.shape[-1]:
        rest = x[..., width:]
        return jnp.concatenate([rotate(x[..., :width], table), rest], -1)
    swapped = x.reshape(*x.shape[:-1], 2, -1)[..., ::-1, :].reshape(x.shape)
    table = table.astype(x.dtype)
    return x * table[..., 0, :] + swapped * table[..., 1, :]
