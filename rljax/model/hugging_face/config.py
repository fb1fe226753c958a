"""Translates config.json to a `DecoderConfig` and back.

Reading raises if a configuration asks for something that the decoder does not compute:
no key that would change a logit is ignored.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from rljax.model.config import DecoderConfig, Experts
from rljax.model.hugging_face import layers, rope
from rljax.model.hugging_face.family import FAMILIES, SYNONYMS, Family, named
from rljax.model.hugging_face.value import checked, only

_SUPPORTED = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0.0, None),
    "per_layer_config": (None,),
}

_KEYS = {  # field of DecoderConfig -> key
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "d_model": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "d_ff": "intermediate_size",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "initializer_std": "initializer_range",
}

_DEFAULTS = {  # those of transformers that all families share
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}

_DERIVED = ("num_key_value_heads", "head_dim")  # null: derived from the other sizes


def read(entries: dict[str, Any], source: str | pathlib.Path) -> DecoderConfig:
    """The decoder configuration that `entries` describe.

    Args:
      entries: the content of config.json.
      source: path of the file, for messages.

    Raises:
      ValueError: naming source and key, if a key is missing or malformed, or asks for
        something that the decoder does not compute.
    """
    if entries.get("quantization_config") is not None:
        raise ValueError(
            f"{source}: weights must not be quantised, got quantization_config"
            f" {json.dumps(entries['quantization_config'])}; load the original model."
        )
    family = named(entries.get("model_type"), f"{source}: ")
    values: dict[str, Any] = {**_DEFAULTS, **family.defaults, **entries}
    _check_supported(values, family, source)
    rotation = rope.read(entries, family, source)
    fields = _sizes(values, family, source)
    part = rotation.pop("partial")
    if part != 1:
        if not family.partial_rotary:
            raise ValueError(
                f"{source}: partial_rotary_factor must be 1.0 to be supported, got"
                f" {json.dumps(part)}; choose another model."
            )
        rotation["rotary_dim"] = int(fields["head_dim"] * part)
    try:
        return DecoderConfig(
            **family.fixed,
            **fields,
            **rotation,
            **layers.read(values, family, source),
            experts=_experts(values, entries, family, source),
        )
    except ValueError as error:
        message = str(error)
        where = "" if message.startswith(f"{source}: ") else f"{source}: "
        raise ValueError(f"{where}{message}") from error


def entries(
    config: DecoderConfig,
    *,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of config.json, in spellings that transformers 4 and 5 both read.

    Args:
      config: of the decoder.
      model_type: a family; None: the first that can express `config`.
      extra: further keys; those that describe the architecture must agree with
        `config`.

    Raises:
      ValueError: if the family cannot express `config`, or `extra` contradicts it.
    """
    if model_type is None:
        model_type = next((k for k in FAMILIES if not _why_not(k, config)), None)
        if model_type is None:
            raise ValueError(
                "config must be one that a family of models can express, of"
                f" {', '.join(FAMILIES)}, got {config}; leave out the options that"
                " belong to another family."
            )
    if reason := _why_not(model_type, config):
        raise ValueError(
            f"model_type must be a family that can express config, got {model_type!r},"
            f" which cannot: {reason}; leave model_type out."
        )
    if model_type == "llama" and config.d_model % config.num_heads:
        # transformers' LlamaConfig refuses it; Mistral is the same without the check.
        raise ValueError(
            "model_type 'llama' needs d_model to be a multiple of num_heads, got"
            f" {config.d_model} and {config.num_heads}; pass model_type='mistral'."
        )
    model = _written(model_type, config)
    extra = {} if extra is None else extra
    # Null means "not given": published files often leave head_dim to the reader.
    said = {k: v for k, v in extra.items() if k in model and v is not None}
    same = {k: v for k, v in said.items() if _same(model, k, v)}
    changed = {k: v for k, v in said.items() if k not in same}
    if changed:
        kept = {k: model[k] for k in changed}
        raise ValueError(
            f"extra must leave {kept} as they are, got {changed}; leave them out."
        )
    out = {**extra, **model, **same}
    if difference := _difference(read(out, "extra"), config):
        raise ValueError(
            f"extra must not change what the decoder computes, but {difference}; leave"
            " its architecture keys out."
        )
    return out


def _check_supported(values: dict[str, Any], family: Family, source) -> None:
    for key, supported in {**_SUPPORTED, **family.supported}.items():
        got = values.get(key, supported[0])
        if got not in supported:
            only = " or ".join(json.dumps(x) for x in supported)
            raise ValueError(
                f"{source}: {key} must be {only} to be supported, got"
                f" {json.dumps(got)}; choose another model."
            )


def _sizes(values: dict[str, Any], family: Family, source) -> dict[str, Any]:
    """The fields of DecoderConfig that correspond to one key each."""
    missing = [key for key in _KEYS.values() if key not in values]
    if missing:
        raise ValueError(
            f"{source}: {', '.join(missing)} must be given, found only"
            f" {', '.join(sorted(values))}; take the file published with the weights."
        )
    kinds: dict[str, Any] = {
        field.name: field.type for field in dataclasses.fields(DecoderConfig)
    }
    keys = {**_KEYS, **family.keys}
    for field, key in keys.items():
        if values[key] is not None or key not in _DERIVED:
            checked(kinds[field], key, values[key], source)
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
    return {field: values[key] for field, key in keys.items()}


def _experts(values, given, family: Family, source) -> Experts | None:
    if family.experts is None:
        return None
    found = {}
    for field, key in family.experts.items():
        names = [key, SYNONYMS.get(key, key)]
        said = {name: given[name] for name in names if name in given}
        value = only(key, said, values.get(key), source)
        found[field] = checked(Experts.__annotations__[field], key, value, source)
    return Experts(**found)


def _written(model_type: str, config: DecoderConfig) -> dict[str, Any]:
    """The keys of config.json that describe the architecture."""
    family = named(model_type)
    supported = {**_SUPPORTED, **family.supported}
    keys = {**_KEYS, **family.keys}
    out = {
        "architectures": [family.architecture],
        "model_type": model_type,
        "hidden_act": supported["hidden_act"][0],
        **{key: supported[0] for key, supported in family.supported.items()},
        **{key: getattr(config, field) for field, key in keys.items()},
        **rope.entries(config, family),
        **layers.entries(config, family),
    }
    if family.experts is not None and config.experts is not None:
        numbers = {key: getattr(config.experts, f) for f, key in family.experts.items()}
        out = {**out, **numbers}
    return out


def _computed(config: DecoderConfig) -> dict[str, Any]:
    """The fields that determine the logits, without those of the implementation."""
    how = ("attention", "attention_block", "dtype", "remat", "unroll")
    return {k: v for k, v in vars(config).items() if k not in how}


def _why_not(model_type: str, config: DecoderConfig) -> str:
    """Why a family cannot express `config`; "" if it can."""
    try:
        got = read(_written(model_type, config), "config.json")
    except ValueError as error:
        return str(error)
    return _difference(got, config)


def _difference(got: DecoderConfig, wanted: DecoderConfig) -> str:
    return ", ".join(
        f"{field} is {value!r} there, not {_computed(wanted)[field]!r}"
        for field, value in _computed(got).items()
        if value != _computed(wanted)[field]
    )


def _same(model: dict[str, Any], key: str, value) -> bool:
    """Whether `value` of a key means the same as the model's own.

    Numbers and rotary scalings have several spellings. The name of the class may
    differ, because it changes no logit.
    """
    if value == model[key] or key == "architectures":
        return True
    try:
        other = read({**model, key: value}, "extra")
    except ValueError:
        return False
    return key != "model_type" and other == read(model, "extra")
