"""The configuration of a decoder: its sizes and its architectural options."""

import dataclasses
import typing
from typing import Any, NamedTuple

import jax.numpy as jnp

from rljax import check
from rljax.model.rotary import LongScaling, Rope, RopeScaling

_SIZES = (
    "vocab_size",
    "num_layers",
    "d_model",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "d_ff",
)


_CHOICES = {
    "qk_norm": (None, "head", "all"),
    "norms": ("before", "after", "both"),
    "activation": ("silu", "gelu_tanh"),
    "attention": ("auto", "whole", "blocks", "splash", "cudnn"),
}


class Experts(NamedTuple):
    """A mixture of experts instead of one MLP.

    num: experts per layer.
    num_chosen: experts that process a token.
    d_ff: hidden width of an expert.
    normalised: whether the weights of the chosen experts sum to 1.
    shared_d_ff: hidden width of a shared expert that processes every token; None: no
      shared expert.
    """

    num: int
    num_chosen: int
    d_ff: int
    normalised: bool = True
    shared_d_ff: int | None = None

    @property
    def dtype(self) -> Any:
        """Integer dtype in which expert indices are recorded."""
        return jnp.uint8 if self.num <= 256 else jnp.uint16

    def check(self):
        """Raises ValueError if a number is outside its range."""
        check.count("experts.num", self.num)
        check.count("experts.num_chosen", self.num_chosen, high=self.num)
        check.count("experts.d_ff", self.d_ff)
        if self.shared_d_ff is not None:
            check.count("experts.shared_d_ff", self.shared_d_ff)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Sizes and options of a decoder; the names are the project's, not Hugging Face's.

    num_heads: query heads; a multiple of num_kv_heads.
    num_kv_heads: key/value heads (grouped-query attention).
    head_dim: width of a head; even.
    d_ff: hidden width of the gated MLP; the experts have their own.
    rope_theta: base of the rotary frequencies.
    rope_scaling: how the frequencies are scaled (`rljax.model.rotary`); None: unscaled.
    rotary_dim: number of leading features of a head that are rotated; None: all.
    unrotated: per layer, whether it has no rotary embedding (SmolLM3); (): every layer
      has one.
    window: tokens that a sliding-window layer attends to, the token itself included.
    sliding: per layer, whether its attention is limited to `window`; (): no layer's is.
    sliding_rope_theta: rotary base of the sliding layers, without scaling; None: the
      same as that of the others.
    norms: whether the inputs ("before"), the outputs ("after", OLMo 2) or "both"
      (Gemma) of attention and MLP are normalised.
    norm_offset: added to the scales of all norms; 1 in Gemma.
    norm_epsilon: added to the mean square in RMSNorm.
    qk_norm: how queries and keys are normalised before rotation: per "head" (Qwen3),
      over "all" heads together (OLMo 2), or not at all (None).
    qkv_bias: whether queries, keys and values have biases (Qwen2).
    query_scalar: attention scores are divided by sqrt(query_scalar); None: head_dim.
    attention_cap, logit_cap: attention scores and logits x become cap tanh(x / cap);
      None: no cap.
    activation: of the MLP's gate, "silu" or "gelu_tanh".
    experts: a mixture of experts in place of every layer's MLP; None: dense.
    tie_embeddings: whether the output head is the embedding.
    scale_embeddings: whether embeddings are multiplied by sqrt(d_model) (Gemma).
    initializer_std: standard deviation of the initial weights.
    dtype: of activations; parameters keep their own dtype.
    unroll: layers unrolled in the body of the scan over layers; divides num_layers.
      num_layers runs fastest (XLA:CPU); 1 compiles in a time independent of depth.
      None: num_layers up to 8 layers, else 1.
    attention: implementation for prefill and training: "auto", "whole", "blocks",
      "splash" (TPU) or "cudnn" (GPU); see `rljax.model.causal`. They differ only in
      rounding.
    attention_block: tokens per block of "blocks"; None: 512. If it is set, "auto" means
      "blocks" for any number of tokens.
    remat: whether the backward pass recomputes the inside of each layer instead of
      storing it. Only the layers' inputs stay in memory, for a third more arithmetic.
      Use it with unroll=1: XLA may keep the activations of unrolled layers anyway.
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
    rotary_dim: int | None = None
    unrotated: tuple[bool, ...] = ()
    window: int | None = None
    sliding: tuple[bool, ...] = ()
    sliding_rope_theta: float | None = None
    norms: str = "before"
    norm_offset: float = 0.0
    norm_epsilon: float = 1e-6
    qk_norm: str | None = None
    qkv_bias: bool = False
    query_scalar: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    activation: str = "silu"
    experts: Experts | None = None
    tie_embeddings: bool = True
    scale_embeddings: bool = False
    initializer_std: float = 0.02
    dtype: Any = jnp.float32
    unroll: int | None = None
    attention: str = "auto"
    attention_block: int | None = None
    remat: bool = False

    def __post_init__(self):
        for name in _SIZES:
            check.count(name, vars(self)[name])
        for name in ("rope_theta", "norm_epsilon", "initializer_std"):
            check.number(name, vars(self)[name], above=0)
        for name in ("query_scalar", "attention_cap", "logit_cap"):
            if vars(self)[name] is not None:
                check.number(name, vars(self)[name], above=0)
        check.number("norm_offset", self.norm_offset)
        for name, choices in _CHOICES.items():
            if vars(self)[name] not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))}, got"
                    f" {vars(self)[name]!r}; choose one of them."
                )
        if self.experts is not None:
            check.kind("experts", self.experts, Experts, "Experts(8, 2, d_ff=64)")
            self.experts.check()
        for name in ("unroll", "attention_block"):
            if vars(self)[name] is not None:
                check.count(name, vars(self)[name])
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads must be a multiple of num_kv_heads, got {self.num_heads}"
                f" and {self.num_kv_heads}; change one of them."
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even, got {self.head_dim}; add or take 1."
            )
        self._check_rotation()
        self._check_layers()
        if self.num_layers % self.layers_per_group:
            raise ValueError(
                f"unroll must be a divisor of num_layers={self.num_layers}, got"
                f" {self.unroll}; 1 compiles fastest, None chooses."
            )

    def _check_rotation(self):
        width = self.rotated_width
        if width % 2 or not 0 < width <= self.head_dim:
            raise ValueError(
                f"rotary_dim must be even and at most head_dim={self.head_dim}, got"
                f" {width}; None rotates whole heads."
            )
        if self.rope_scaling is None:
            return
        example = "Llama3Scaling(32.0, 1.0, 4.0, 8192)"
        kinds = typing.get_args(RopeScaling)
        check.kind("rope_scaling", self.rope_scaling, kinds, example)
        self.rope_scaling.check()
        if isinstance(self.rope_scaling, LongScaling):
            sizes = [len(self.rope_scaling.short), len(self.rope_scaling.long)]
            if sizes != [width // 2, width // 2]:
                raise ValueError(
                    "rope_scaling must have a factor for each pair of rotated features,"
                    f" {width // 2}, got {sizes[0]} short and {sizes[1]} long ones;"
                    " change them or rotary_dim."
                )

    def _check_layers(self):
        for name in ("sliding", "unrotated"):
            size = len(vars(self)[name])
            if size not in (0, self.num_layers):
                raise ValueError(
                    f"{name} must have one value for each of num_layers="
                    f"{self.num_layers} layers, got {size} values; () is no layer."
                )
        if self.window is not None:
            check.count("window", self.window)
        if (self.window is not None) != any(self.sliding):
            raise ValueError(
                "window must be given where a layer is sliding, and only there, got"
                f" window={self.window} and sliding={self.sliding}; change one of them."
            )
        if self.sliding_rope_theta is not None:
            check.number("sliding_rope_theta", self.sliding_rope_theta, above=0)

    @property
    def layers_per_group(self) -> int:
        """Layers in the body of the scan over layers."""
        if self.unroll is not None:
            return self.unroll
        return self.num_layers if self.num_layers <= 8 else 1

    @property
    def num_groups(self) -> int:
        """Iterations of the scan over layers."""
        return self.num_layers // self.layers_per_group

    @property
    def rotated_width(self) -> int:
        """Features of a head that are rotated."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The rotary embedding of each layer."""
        full = Rope(self.rope_theta, self.rope_scaling)
        other = self.sliding_rope_theta
        near = full if other is None else Rope(other)
        ropes = [full] * self.num_layers
        for i, slides in enumerate(self.sliding):
            ropes[i] = near if slides else full
        for i, still in enumerate(self.unrotated):
            ropes[i] = Rope(None) if still else ropes[i]
        return tuple(ropes)
