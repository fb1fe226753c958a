"""The sizes of a decoder."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from rljax import check
from rljax.model.rotary import RopeScaling

_SIZES = (
    "vocab_size",
    "num_layers",
    "d_model",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "d_ff",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes of a decoder; names follow the project's letters, not Hugging Face's.

    num_heads, num_kv_heads: query heads, and key/value heads that they share evenly.
    head_dim: width of a head; even.
    d_ff: width inside the SwiGLU.
    rope_theta: base of the rotary frequencies.
    rope_scaling: Llama 3's scaling of them; None is none.
    norm_epsilon: added to the mean square in RMSNorm.
    tie_embeddings: whether the output head is the embedding.
    qkv_bias: whether queries, keys and values have biases (Qwen2).
    qk_norm: whether queries and keys are normalised per head before they are rotated
      (Qwen3).
    initializer_std: of the initial weights.
    dtype: of activations; parameters stay as they are stored.
    unroll: layers that are compiled side by side; divides num_layers. All of them is
      the fastest to run (XLA:CPU), 1 compiles in a time that does not grow with depth.
      None takes all of up to 8 layers, and 1 of more.
    remat: whether the backward pass computes the inside of each layer again instead of
      keeping it: memory of the layers' inputs alone, for a third more arithmetic. For
      deep models, with unroll=1: of layers side by side XLA may still keep it.
    """

    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    tie_embeddings: bool = True
    qkv_bias: bool = False
    qk_norm: bool = False
    initializer_std: float = 0.02
    dtype: Any = jnp.float32
    unroll: int | None = None
    remat: bool = False

    def __post_init__(self):
        for name in _SIZES:
            check.count(name, vars(self)[name])
        for name in ("rope_theta", "norm_epsilon", "initializer_std"):
            check.number(name, vars(self)[name], above=0)
        if self.rope_scaling is not None:
            example = "RopeScaling(32.0, 1.0, 4.0, 8192)"
            check.kind("rope_scaling", self.rope_scaling, RopeScaling, example)
            self.rope_scaling.check()
        if self.unroll is not None:
            check.count("unroll", self.unroll)
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads}"
                f" and {self.num_kv_heads}; change one of them."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even, got {self.head_dim}; add or take 1."
            )
        if self.num_layers % self.layers_per_group:
            raise ValueError(
                f"unroll must be a divisor of num_layers={self.num_layers}, got"
                f" {self.unroll}; 1 compiles fastest, None chooses."
            )

    @property
    def layers_per_group(self) -> int:
        """Layers in the body of the scan over layers."""
        if self.unroll is not None:
            return self.unroll
        return self.num_layers if self.num_layers <= 8 else 1

    @property
    def num_groups(self) -> int:
        """How often the scan runs its body."""
        return self.num_layers // self.layers_per_group
