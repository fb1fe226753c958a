"""config.json of Llama-type models, read to a `DecoderConfig` and written from one.

Reading raises if a configuration asks for what the decoder does not compute: no key
that would change a logit is ignored. A further family is a row in `FAMILIES`.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rljax.model.config import DecoderConfig
from rljax.model.rotary import RopeScaling


class Family(NamedTuple):
    """A `model_type`, where it differs from the others.

    architecture: the class of transformers that loads it.
    qkv_bias, qk_norm: these fields of DecoderConfig, the same for all its models.
    supported: key -> values the decoder computes, None for null; the first is written.
      Of a list, every entry must be among them.
    defaults: key -> what transformers takes when the key is absent.
    """

    architecture: str
    qkv_bias: bool
    qk_norm: bool
    supported: dict[str, tuple]
    defaults: dict[str, Any]

    def fits(self, config: DecoderConfig) -> bool:
        """Whether its models compute what `config` asks for."""
        wanted = (config.qkv_bias, config.qk_norm)
        return wanted == (self.qkv_bias, self.qk_norm)


FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM",
        qkv_bias=False,
        qk_norm=False,
        # Its attention_bias is also one of the output projection: not Qwen2's biases.
        supported={"attention_bias": (False,), "mlp_bias": (False,)},
        defaults={"num_key_value_heads": None},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        qk_norm=False,
        # Its sliding_window is a number even where no layer has a window.
        supported={"use_sliding_window": (False,)},
        defaults={},
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        qkv_bias=False,
        qk_norm=True,
        # Its attention_bias is also one of the output projection, as Llama's.
        supported={"attention_bias": (False,), "use_sliding_window": (False,)},
        defaults={"head_dim": 128},
    ),
    "mistral": Family(
        "MistralForCausalLM",
        qkv_bias=False,
        qk_norm=False,
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

_LLAMA3 = {  # field of RopeScaling -> key of rope_scaling, where rope_type is "llama3"
    "factor": "factor",
    "low_turns": "low_freq_factor",
    "high_turns": "high_freq_factor",
    "original_positions": "original_max_position_embeddings",
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
    values["rope_theta"], scaling = _rope(entries, source)
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
        return DecoderConfig(
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            rope_scaling=scaling,
            **fields,
        )
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
      model_type: a family; None takes the first that computes what `config` says.
      extra: further keys; those that say how the decoder computes must agree.

    Raises:
      ValueError: if the family cannot express `config`, or `extra` contradicts it.
    """
    if model_type is None:
        model_type = next((k for k, f in FAMILIES.items() if f.fits(config)), None)
        if model_type is None:
            raise ValueError(
                "no family of models has both biases and normalised queries and keys,"
                " got qkv_bias=True and qk_norm=True; make one of them False."
            )
    family = _family(model_type)
    if not family.fits(config):
        raise ValueError(
            f"model_type {model_type!r} needs qkv_bias={family.qkv_bias} and"
            f" qk_norm={family.qk_norm}, got {config.qkv_bias} and {config.qk_norm};"
            " leave model_type out."
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
    if config.rope_scaling is not None:
        numbers = {k: getattr(config.rope_scaling, f) for f, k in _LLAMA3.items()}
        model["rope_scaling"] = {"rope_type": "llama3", **numbers}
    extra = {} if extra is None else extra
    # A null in `extra` says nothing: published files leave head_dim to the reader.
    said = {k: v for k, v in extra.items() if k in model and v is not None}
    # Other spellings of the same, and the name of the class, which changes no logit.
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


def _rope(given: dict[str, Any], source) -> tuple[float, RopeScaling | None]:
    """The base of rotary positions, and their scaling.

    Both stand at the top or, in transformers 5, nested; in `extra` and in files that
    two versions have written, in several places.
    """
    thetas = {key: given[key] for key in ("rope_theta",) if key in given}
    scalings = {}
    for key in ("rope_parameters", "rope_scaling"):
        rope = {} if given.get(key) is None else given[key]
        if not isinstance(rope, dict):
            raise ValueError(f"{source}: {key} must be an object, got {rope!r}.")
        kind = rope.get("rope_type", rope.get("type", "default"))
        known = {"rope_theta", "rope_type", "type"}
        known |= set(_LLAMA3.values()) if kind == "llama3" else set()
        # Multi-modal and nested per-layer forms hide behind type "default", too.
        if kind not in ("default", "llama3") or rope.keys() - known:
            raise ValueError(
                f'{source}: of {key} only rope_type "default" or "llama3" is supported,'
                f" got {json.dumps(rope)}; choose another model."
            )
        if "rope_theta" in rope:
            thetas[f"{key}.rope_theta"] = rope["rope_theta"]
        if rope:
            scalings[key] = _scaling(key, rope, source) if kind == "llama3" else None
    theta = _only("rope_theta", thetas, _DEFAULTS["rope_theta"], source)
    return theta, _only("rotary scaling", scalings, None, source)


def _scaling(key: str, rope: dict[str, Any], source) -> RopeScaling:
    kinds = RopeScaling.__annotations__
    for field, name in _LLAMA3.items():
        _check_value(kinds[field], f"{key}.{name}", rope.get(name), source)
    return RopeScaling(**{field: rope[name] for field, name in _LLAMA3.items()})


def _only(what: str, found: dict[str, Any], default, source):
    """The one value that stands in all places where there is one."""
    values = [*found.values(), default]
    if any(value != values[0] for value in found.values()):
        raise ValueError(f"{source}: need one {what}, got {json.dumps(found)}.")
    return values[0]


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
