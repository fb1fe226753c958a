"""config.json, read to a `DecoderConfig` and written from one.

Reading raises if a configuration asks for what the decoder does not compute: no key
that would change a logit is ignored. A further family is a row in `family.FAMILIES`.
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

_DEFAULTS = {  # of transformers, the same for all families
    "head_dim": None,
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
                f"{source}: of partial_rotary_factor only 1.0 is supported, got"
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
        told = str(error)
        where = "" if told.startswith(f"{source}: ") else f"{source}: "
        raise ValueError(f"{where}{told}") from error


def entries(
    config: DecoderConfig,
    *,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What config.json must hold, in spellings that transformers 4, too, reads.

    Args:
      config: the decoder's.
      model_type: a family; None takes the first that computes what `config` says.
      extra: further keys; those that say how the decoder computes must agree.

    Raises:
      ValueError: if the family cannot express `config`, or `extra` contradicts it.
    """
    if model_type is None:
        model_type = next((k for k in FAMILIES if not _differ(k, config)), None)
        if model_type is None:
            raise ValueError(
                "config must be one that a family of models computes, of"
                f" {', '.join(FAMILIES)}, got {config}; leave out what is of another."
            )
    if differ := _differ(model_type, config):
        raise ValueError(
            f"model_type {model_type!r} cannot say what config does: {differ}; leave"
            " model_type out."
        )
    if model_type == "llama" and config.d_model % config.num_heads:
        # transformers' LlamaConfig refuses it; its Mistral is the same without.
        raise ValueError(
            "model_type 'llama' needs d_model to be a multiple of num_heads, got"
            f" {config.d_model} and {config.num_heads}; pass model_type='mistral'."
        )
    model = _written(model_type, config)
    extra = {} if extra is None else extra
    # A null in `extra` says nothing: published files leave head_dim to the reader.
    said = {k: v for k, v in extra.items() if k in model and v is not None}
    same = {k: v for k, v in said.items() if _same(model, k, v)}
    changed = {k: v for k, v in said.items() if k not in same}
    if changed:
        kept = {k: model[k] for k in changed}
        raise ValueError(f"extra must leave {kept} as they are, got {changed}.")
    out = {**extra, **model, **same}
    if differ := _differing(read(out, "extra"), config):
        raise ValueError(
            f"extra must not change what the decoder computes, but {differ}; leave out"
            " its keys of the architecture."
        )
    return out


def _check_supported(values: dict[str, Any], family: Family, source) -> None:
    for key, supported in {**_SUPPORTED, **family.supported}.items():
        got = values.get(key, supported[0])
        if got not in supported:
            only = " or ".join(json.dumps(x) for x in supported)
            raise ValueError(
                f"{source}: of {key} only {only} is supported, got {json.dumps(got)};"
                " choose another model."
            )


def _sizes(values: dict[str, Any], family: Family, source) -> dict[str, Any]:
    """The fields of DecoderConfig that are a key each."""
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
    """The keys that say what a model of the family computes."""
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
    """What a configuration says of the numbers, not of how they are computed."""
    how = ("attention", "attention_block", "dtype", "remat", "unroll")
    return {k: v for k, v in vars(config).items() if k not in how}


def _differ(model_type: str, config: DecoderConfig) -> str:
    """Where a family computes something else than `config` says; "" for nowhere."""
    try:
        got = read(_written(model_type, config), "config.json")
    except ValueError as error:  # it has no words for it
        return str(error)
    return _differing(got, config)


def _differing(got: DecoderConfig, wanted: DecoderConfig) -> str:
    return ", ".join(
        f"{field} is {value!r} there, not {_computed(wanted)[field]!r}"
        for field, value in _computed(got).items()
        if value != _computed(wanted)[field]
    )


def _same(model: dict[str, Any], key: str, value) -> bool:
    """Whether a key says the same with another value: other spellings, of numbers or
    of the rotary scaling, and the name of the class, which changes no logit."""
    if value == model[key] or key == "architectures":
        return True
    try:
        other = read({**model, key: value}, "extra")
    except ValueError:
        return False
    return key != "model_type" and other == read(model, "extra")
