"""The families of models: one row each, with its differences from Llama.

To add a family, add a row to `FAMILIES`. If the family needs something that the decoder
does not compute, first add that to `rljax.model`, with a field of `DecoderConfig`.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

_NOTHING: Mapping[str, Any] = types.MappingProxyType({})


class Windows(NamedTuple):
    """Which layers of a family have a sliding window of `sliding_window` tokens.

    slides: (entries of config.json, number of a layer) -> whether the layer slides, if
      config.json has no `layer_types`.
    listed: whether `layer_types` decides if it is given; otherwise, it must agree.
    switch: a boolean key; if it is false, no layer slides. None: there is no such key.
    """

    slides: Callable[[dict[str, Any], int], bool]
    listed: bool
    switch: str | None = None


class Family(NamedTuple):
    """What config.json and the weight files of one `model_type` look like.

    architecture: the class of transformers that loads it.
    fixed: fields of DecoderConfig that all models of the family share.
    keys: further field of DecoderConfig -> key of config.json.
    supported: key -> values that the decoder computes, None for null; the first is
      written.
    defaults: key -> what transformers assumes if the key is absent.
    experts: field of Experts -> key; None: the family has no experts.
    windows: which layers slide; None: none.
    ropes: values of `rope_type` that the family may have.
    local_rope: whether sliding layers have a rotary base of their own.
    partial_rotary: whether only a part of each head may be rotated.
    unrotated: whether `no_rope_layers` says which layers are rotated.
    tensors: module of a layer -> its name in the files, if it differs from Llama's.
      Modules with the same name share one tensor, whose rows follow the order here.
      `{expert}` stands for the number of an expert.
    """

    architecture: str
    fixed: Mapping[str, Any] = _NOTHING
    keys: Mapping[str, str] = _NOTHING
    supported: Mapping[str, tuple] = _NOTHING
    defaults: Mapping[str, Any] = _NOTHING
    experts: dict[str, str] | None = None
    windows: Windows | None = None
    ropes: tuple[str, ...] = ("default", "linear", "llama3", "yarn")
    local_rope: bool = False
    partial_rotary: bool = False
    unrotated: bool = False
    tensors: Mapping[str, str] = _NOTHING


# In all these families, attention_bias adds a bias to the output projection as well,
# which the decoder does not have; Qwen2's biases are on q, k and v only.
_NO_BIAS = {"attention_bias": (False,)}
_NO_WINDOW = {"use_sliding_window": (False,)}

_ALL_SLIDE = Windows(lambda entries, layer: True, listed=False)
_UPPER_SLIDE = Windows(
    lambda entries, layer: layer >= entries.get("max_window_layers", 28),
    listed=True,
    switch="use_sliding_window",
)


def _full_every(key: str, default: int) -> Windows:
    """Every n-th layer has full attention, n being the value of `key`."""
    return Windows(
        lambda entries, layer: (layer + 1) % entries.get(key, default) > 0, listed=True
    )


_GEMMA = {
    "norms": "both",
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "scale_embeddings": True,
}
_GEMMA_KEYS = {
    "query_scalar": "query_pre_attn_scalar",
    "attention_cap": "attn_logit_softcapping",
    "logit_cap": "final_logit_softcapping",
}
_GEMMA_SUPPORTED = {
    **_NO_BIAS,
    "hidden_activation": ("gelu_pytorch_tanh",),
    "hidden_act": ("gelu_pytorch_tanh", None),
    "use_bidirectional_attention": (False, None),
}
_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}

_QWEN_EXPERTS = {
    "num": "num_experts",
    "num_chosen": "num_experts_per_tok",
    "d_ff": "moe_intermediate_size",
    "normalised": "norm_topk_prob",
}
_ALL_SPARSE = {"decoder_sparse_step": (1,), "mlp_only_layers": ([], None)}

FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        supported={**_NO_BIAS, "mlp_bias": (False,)},
        defaults={"num_key_value_heads": None},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        fixed={"qkv_bias": True},
        windows=_UPPER_SLIDE,
        defaults={"sliding_window": 4096},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        fixed={"qk_norm": "head"},
        supported=_NO_BIAS,
        defaults={"head_dim": 128, "sliding_window": 4096},
        windows=_UPPER_SLIDE,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        defaults={"sliding_window": 4096},
        windows=_ALL_SLIDE,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        fixed=_GEMMA,
        keys=_GEMMA_KEYS,
        supported=_GEMMA_SUPPORTED,
        defaults={
            **_GEMMA_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        windows=_full_every("sliding_window_pattern", 2),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        fixed={**_GEMMA, "qk_norm": "head"},
        keys=_GEMMA_KEYS,
        supported=_GEMMA_SUPPORTED,
        defaults={
            **_GEMMA_DEFAULTS,
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        windows=_full_every("sliding_window_pattern", 6),
        local_rope=True,
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        fixed={"norms": "after", "qk_norm": "all"},
        supported=_NO_BIAS,
        defaults={"num_key_value_heads": None, "rms_norm_eps": 1e-5},
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        supported={**_NO_BIAS, **_NO_WINDOW, "mlp_bias": (False,)},
        defaults={
            "num_key_value_heads": 4,
            "rope_theta": 2_000_000.0,
            "tie_word_embeddings": True,
        },
        unrotated=True,
    ),
    "phi3": Family(
        "Phi3ForCausalLM",
        defaults={
            "num_key_value_heads": None,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "original_max_position_embeddings": 4096,
        },
        windows=_ALL_SLIDE,
        ropes=("default", "longrope"),
        partial_rotary=True,
        tensors={
            "q": "self_attn.qkv_proj",
            "k": "self_attn.qkv_proj",
            "v": "self_attn.qkv_proj",
            "gate": "mlp.gate_up_proj",
            "up": "mlp.gate_up_proj",
        },
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        supported={"router_jitter_noise": (0.0,)},
        defaults={
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
            "rope_theta": 1_000_000.0,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        experts={
            "num": "num_local_experts",
            "num_chosen": "num_experts_per_tok",
            "d_ff": "intermediate_size",
        },
        windows=_ALL_SLIDE,
        tensors={
            "experts.router": "block_sparse_moe.gate",
            "experts.gate": "block_sparse_moe.experts.{expert}.w1",
            "experts.up": "block_sparse_moe.experts.{expert}.w3",
            "experts.down": "block_sparse_moe.experts.{expert}.w2",
        },
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        fixed={"qkv_bias": True},
        supported={**_NO_WINDOW, **_ALL_SPARSE, "qkv_bias": (True,)},
        defaults={
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "norm_topk_prob": False,
            "shared_expert_intermediate_size": 5632,
        },
        experts={**_QWEN_EXPERTS, "shared_d_ff": "shared_expert_intermediate_size"},
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        fixed={"qk_norm": "head"},
        supported={**_NO_BIAS, **_NO_WINDOW, **_ALL_SPARSE},
        defaults={
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": False,
        },
        experts=_QWEN_EXPERTS,
    ),
}

SYNONYMS = {"num_experts": "num_local_experts"}
"""key -> its spelling in transformers 5, in some families."""


def named(model_type, where: str = "") -> Family:
    """The family of a model_type; raises ValueError if it is unknown."""
    if model_type not in FAMILIES:
        raise ValueError(
            f"{where}model_type must be one of {', '.join(FAMILIES)}, got"
            f" {model_type!r}; the decoder computes no other."
        )
    return FAMILIES[model_type]
