"""config.json of Llama-type models, read to a `DecoderConfig` and written from one.

What a configuration asks for and the decoder does not compute raises: nothing is
ignored that would change a logit. A further family is a row in `FAMILIES`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rljax.model.config import DecoderConfig


class Family(NamedTuple):
    """A `model_type`, where it differs from the others.

    architecture: the class of transformers that loads it.
    qkv_bias: whether its queries, keys and values have biases.
    supported: key -> values the decoder computes, None for null; the first is written.
      Of a list, every entry must be among them.
    defaults: key -> what transformers takes when the key is absent.
    """

    architecture: str
    qkv_bias: bool
    supported: dict[str, tuple]
    defaults: dict[str, Any]


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        qkv_bias=False,
        # Its attention_bias is also one of the output projection: not Qwen2's biases.
        supported={"attention_bias": (False,), "mlp_bias": (False,)},
        defaults={"num_key_value_heads": None},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        # Its sliding_window is a number even where no layer has a window.
        supported={"use_sliding_window": (False,)},
        defaults={},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        qkv_bias=False,
        supported={"sliding_window": (None,)},
        defaults={"sliding_window": 4096},
    ),
}

_SUPPORTED = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0.0, None),
    "layer_types": ("full_attention", None),
    "partial_rotary_factor": (1.0, None),
    "per_layer_config": (None,),
    "quantization_config": (None,),
}

_KEYS = {  # field of DecoderConfig -> key
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "rope_theta": "rope_theta",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_std": "initializer_range",
}

_DEFAULTS = {  # of transformers, the same for all families
    "head_dim": None,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}

_DERIVED = ("num_key_value_heads", "head_dim")  # null means: from the other sizes


def read(entries: dict[str, Any], source: str | pathlib.Path) -> DecoderConfig:
    """The configuration that `entries` describe.

    Args:
      entries: what config.json holds.
      source: where they are from, for messages.

    Raises:
      ValueError: naming source and key, if a key is missing, malformed or asks for
        what the decoder does not compute.
    """
    family = _family(entries.get("model_type"), f"{source}: ")
    values: dict[str, Any] = {**_DEFAULTS, **family.defaults, **entries}
    for key, supported in {**_SUPPORTED, **family.supported}.items():
        got = values.get(key, supported[0])
        if any(x not in supported for x in (got if isinstance(got, list) else [got])):
            only = " or ".join(json.dumps(x) for x in supported)
            raise ValueError(
                f"{source}: of {key} only {only} is supported, got {json.dumps(got)};"
                " choose another model."
            )
    values["rope_theta"] = _rope_theta(entries, source)
    missing = [key for key in _KEYS.values() if key not in values]
    if missing:
        raise ValueError(
            f"{source}: {', '.join(missing)} must be given, found only"
            f" {', '.join(sorted(entries))}; take the file published with the weights."
        )
    kinds: dict[str, Any] = {
        field.name: field.type for field in dataclasses.fields(DecoderConfig)
    }
    for field, key in _KEYS.items():
        if values[key] is not None or key not in _DERIVED:
            _check_value(kinds[field], key, values[key], source)
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = heads
    if values["head_dim"] is None:
        if width % heads:
            raise ValueError(
                f"{source}: without head_dim, hidden_size must be a multiple of"
                f" num_attention_heads, got {width} and {heads}; add head_dim."
            )
        values["head_dim"] = width // heads
    try:
        fields = {field: values[key] for field, key in _KEYS.items()}
        return DecoderConfig(qkv_bias=family.qkv_bias, **fields)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def entries(
    config: DecoderConfig,
    *,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What config.json must hold, in spellings that transformers 4, too, reads.

    Args:
      config: the decoder's.
      model_type: a family; None takes the first with the biases of `config`.
      extra: further keys; those that say how the decoder computes must agree.

    Raises:
      ValueError: if the family cannot express `config`, or `extra` contradicts it.
    """
    if model_type is None:
        fits = (k for k, f in FAMILIES.items() if f.qkv_bias == config.qkv_bias)
        model_type = next(fits)
    family = _family(model_type)
    if family.qkv_bias != config.qkv_bias:
        raise ValueError(
            f"model_type {model_type!r} needs qkv_bias={family.qkv_bias}, got"
            f" {config.qkv_bias}; leave model_type out."
        )
    if model_type == "llama" and config.d_model % config.num_heads:
        # transformers' LlamaConfig refuses it; its Mistral is the same without.
        raise ValueError(
            "model_type 'llama' needs d_model to be a multiple of num_heads, got"
            f" {config.d_model} and {config.num_heads}; pass model_type='mistral'."
        )
    model = {
        "architectures": [family.architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        **{key: supported[0] for key, supported in family.supported.items()},
        **{key: getattr(config, field) for field, key in _KEYS.items()},
    }
    extra = {} if extra is None else extra
    # A null of extra says nothing: published files leave head_dim to the reader.
    said = {k: v for k, v in extra.items() if k in model and v is not None}
    # Another spelling of the same, and a name that nothing is computed by.
    supported = {**_SUPPORTED, **family.supported}
    same = {
        k: v
        for k, v in said.items()
        if k == "architectures" or v in supported.get(k, ())
    }
    changed = {k: v for k, v in said.items() if v != model[k] and k not in same}
    if changed:
        kept = {k: model[k] for k in changed}
        raise ValueError(f"extra must leave {kept} as they are, got {changed}.")
    out = {**extra, **model, **same}
    read(out, "extra")
    return out


def _family(model_type, where: str = "") -> Family:
    if model_type not in FAMILIES:
        raise ValueError(
            f"{where}model_type must be one of {', '.join(FAMILIES)}, got"
            f" {model_type!r}; the decoder computes no other."
        )
    return FAMILIES[model_type]


def _rope_theta(given: dict[str, Any], source) -> float:
    """The base of rotary positions: at the top or, in transformers 5, nested."""
    found = {key: given[key] for key in ("rope_theta",) if key in given}
    for key in ("rope_parameters", "rope_scaling"):
        rope = {} if given.get(key) is None else given[key]
        if not isinstance(rope, dict):
            raise ValueError(f"{source}: {key} must be an object, got {rope!r}.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        # Multi-modal and nested per-layer forms hide behind type "default", too.
        if kind != "default" or rope.keys() - {"rope_theta", "rope_type", "type"}:
            raise ValueError(
                f'{source}: of {key} only rope_type "default" with a rope_theta is'
                f" supported, got {json.dumps(rope)}; choose another model."
            )
        if "rope_theta" in rope:
            found[f"{key}.rope_theta"] = rope["rope_theta"]
    thetas = [*found.values(), _DEFAULTS["rope_theta"]]
    if any(theta != thetas[0] for theta in found.values()):
        raise ValueError(f"{source}: need one rope_theta, got {json.dumps(found)}.")
    return thetas[0]


def _check_value(kind: type, key: str, value, source) -> None:
    if kind is bool:
        good, what = isinstance(value, bool), "true or false"
    else:
        allowed = int if kind is int else (int, float)
        good = isinstance(value, allowed) and not isinstance(value, bool)
        good = good and 0 < value < (2**31 if kind is int else math.inf)
        what = "a whole number above 0" if kind is int else "a number above 0"
    if not good:
        raise ValueError(f"{source}: {key} must be {what}, got {json.dumps(value)}.")
