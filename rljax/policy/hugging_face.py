"""Decoders as Hugging Face folders: config.json and safetensors, read and written.

Folders are checked completely before an array is made. What a configuration asks for
and the decoder does not compute raises; nothing is ignored that would change a logit.
Neither torch nor transformers is imported.

A further family needs a row in `_FAMILIES` and, for tensors of new kinds, rows in
`_MODULES` and `_LAYER_MODULES`; which parameters there are, and their shapes, is read
off the decoder itself.
"""

import contextlib
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from rljax.policy.decoder import DecoderConfig, decoder_policy

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class _Family(NamedTuple):
    """A `model_type`, where it differs from the others.

    architecture: the class of transformers that loads it.
    qkv_bias: whether its queries, keys and values have biases.
    supported: key -> values the decoder computes, None for null; `save` writes the
      first. Of a list, every entry must be among them.
    defaults: key -> what transformers takes when the key is absent.
    """

    architecture: str
    qkv_bias: bool
    supported: dict[str, tuple]
    defaults: dict[str, Any]


_FAMILIES = {
    "llama": _Family(
        "LlamaForCausalLM",
        qkv_bias=False,
        supported={"attention_bias": (False,), "mlp_bias": (False,)},
        defaults={"num_key_value_heads": None},
    ),
    "qwen2": _Family(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        # Its `sliding_window` is a number even where no layer uses it.
        supported={"use_sliding_window": (False,)},
        defaults={},
    ),
    "mistral": _Family(
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

_KEYS = {  # DecoderConfig field -> key of config.json
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

_DEFAULTS = {
    "hidden_act": "silu",
    "head_dim": None,
    "rope_theta": 10_000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
}

_MODULES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}

_LAYER_MODULES = {
    "norm_attention": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "norm_mlp": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}

# Old checkpoints carry the rotary frequencies, which follow from rope_theta.
_DERIVED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

_STORED_DTYPES = {"F64", "F32", "F16", "BF16"}
_SAVED_DTYPES = {"float32", "float16", "bfloat16"}


def load(
    path: str | os.PathLike, *, param_dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[DecoderConfig, dict[str, Any]]:
    """The decoder of a local folder: `config, params = load(path)`.

    Activations are float32; for others, `dataclasses.replace(config, dtype=...)`.

    Args:
      path: a folder with config.json (`llama`, `qwen2`, or `mistral` without a sliding
        window) and model.safetensors, or shards with their index.
      param_dtype: of the parameters, whatever the file holds.

    Returns:
      The configuration and the parameters for `decoder_policy(config)`.

    Raises:
      ValueError: naming the file, and the key or tensor, if a file is missing or
        broken, if the decoder does not compute what the configuration asks for, or if
        tensors are missing, unexpected or of a wrong shape.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"path must be a local folder, got {str(folder)!r}, which is"
            f" {'a file' if folder.exists() else 'missing'}; download the model first."
        )
    config = _decoder_config(_read_json(folder / CONFIG), folder / CONFIG)
    shapes = _shapes(config)
    with contextlib.ExitStack() as stack:
        stored = _open_tensors(folder, stack)
        _check_tensors(folder, stored, _by_tensor_name(shapes), config)

        def read(path, _):
            tensor = stored[_tensor_name(path)].get_tensor(_tensor_name(path))
            return jnp.array(_transposed(path, tensor).astype(param_dtype))

        return config, jax.tree_util.tree_map_with_path(read, shapes)


def save(
    path: str | os.PathLike,
    config: DecoderConfig,
    params: dict[str, Any],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that `load` and transformers read to equal logits.

    All or nothing: files are written to a hidden folder beside `path`, which takes its
    name when it is complete.

    Args:
      path: the folder to make; must not exist, or be empty.
      config: the decoder's.
      params: its parameters, all of one dtype (float32, bfloat16 or float16), which
        the files keep. Every entry must be addressable by this process.
      tokenizer: saved beside; its begin, end and padding tokens enter config.json.
      model_type: `llama`, `qwen2` or `mistral`; by default the first that has the
        biases of `config`.
      extra: further keys of config.json that the decoder has no word for, such as
        {"max_position_embeddings": 32768}. They win over the tokenizer's.
      shard_bytes: size from which weights are split over several files, bytes; also
        bounds the host memory in use.

    Raises:
      ValueError: if `path` is taken, `params` are not those of `config`, the model
        type cannot express `config`, the tokenizer has more tokens than the model, or
        `extra` contradicts the rest. Nothing is written then.
    """
    target = pathlib.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"path must not exist yet or be an empty folder, got {str(target)!r};"
            " choose another or remove it first."
        )
    tensors = _checked_parameters(config, params)
    dtype = tensors[0][1].dtype.name
    entries = _config_entries(config, dtype, tokenizer, model_type, dict(extra or {}))
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        _write_tensors(partial, tensors, shard_bytes)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        _write_json(partial / CONFIG, entries)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _family(model_type, where: str) -> _Family:
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ValueError(
            f"{where}model_type must be one of {', '.join(_FAMILIES)}, got"
            f" {model_type!r}; the decoder computes no other model."
        )
    return _FAMILIES[model_type]


def _decoder_config(entries: dict[str, Any], file: pathlib.Path) -> DecoderConfig:
    """The configuration that config.json describes, all of it or a ValueError."""
    family = _family(entries.get("model_type"), f"{file}: ")
    values = {**_DEFAULTS, **family.defaults, **entries}
    for key, supported in {**_SUPPORTED, **family.supported}.items():
        got = values.get(key, supported[0])
        if not all(x in supported for x in (got if isinstance(got, list) else [got])):
            raise ValueError(
                f"{file}: the decoder computes {key} {_choice(supported)}, got"
                f" {json.dumps(got)}; choose another model."
            )
    values["rope_theta"] = _rope_theta(entries, values["rope_theta"], file)
    missing = [key for key in _KEYS.values() if key not in values]
    if missing:
        raise ValueError(
            f"{file}: must say {', '.join(missing)}; it has no such key. Take the"
            " file that was published with the weights."
        )
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    derived = values["head_dim"] is None
    if derived:
        values["head_dim"] = 2  # stands in until the sizes are known to be numbers
    for field, key in _KEYS.items():
        _check_value(DecoderConfig.__annotations__[field], key, values[key], file)
    if derived:
        width, heads = values["hidden_size"], values["num_attention_heads"]
        if width % heads:
            raise ValueError(
                f"{file}: without head_dim, hidden_size must be a multiple of"
                f" num_attention_heads, got {width} and {heads}."
            )
        values["head_dim"] = width // heads
    fields = {field: values[key] for field, key in _KEYS.items()}
    try:
        return DecoderConfig(qkv_bias=family.qkv_bias, **fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _choice(supported: tuple) -> str:
    return " or ".join(json.dumps(x) for x in supported)


def _check_value(kind: type, key: str, value, file: pathlib.Path) -> None:
    if kind is bool:
        good, what = isinstance(value, bool), "true or false"
    else:
        allowed = (int,) if kind is int else (int, float)
        good = isinstance(value, allowed) and not isinstance(value, bool) and value > 0
        what = "a positive whole number" if kind is int else "a positive number"
    if not good:
        raise ValueError(f"{file}: {key} must be {what}, got {json.dumps(value)}.")


def _rope_theta(entries: dict[str, Any], default: float, file: pathlib.Path):
    """The base of the rotary positions: at the top or, in transformers 5, nested."""
    found = {k: entries[k] for k in ("rope_theta",) if k in entries}
    for key in ("rope_parameters", "rope_scaling"):
        given = entries.get(key)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise ValueError(f"{file}: {key} must be an object, got {given!r}.")
        kind = given.get("rope_type", given.get("type", "default"))
        unknown = sorted(set(given) - {"rope_theta", "rope_type", "type"})
        if kind != "default" or unknown:
            raise ValueError(
                f"{file}: the decoder computes {key} of rope_type \"default\", with"
                f" rope_theta and nothing else, got {json.dumps(given)}; choose"
                " another model."
            )
        if "rope_theta" in given:
            found[f"{key}.rope_theta"] = given["rope_theta"]
    thetas = list(found.values()) or [default]
    if any(theta != thetas[0] for theta in thetas):
        raise ValueError(f"{file}: these must agree, got {json.dumps(found)}.")
    return thetas[0]


def _config_entries(
    config: DecoderConfig, dtype: str, tokenizer, model_type: str | None, extra: dict
) -> dict[str, Any]:
    """config.json; in spellings that transformers 4, too, and other readers know."""
    if model_type is None:
        fits = (k for k, f in _FAMILIES.items() if f.qkv_bias == config.qkv_bias)
        model_type = next(fits)
    family = _family(model_type, "")
    if family.qkv_bias != config.qkv_bias:
        raise ValueError(
            f"model_type {model_type!r} needs qkv_bias={family.qkv_bias}, got"
            f" {config.qkv_bias}; leave model_type out."
        )
    if model_type == "llama" and config.d_model % config.num_heads:
        # A check of transformers' LlamaConfig; mistral is the same model without it.
        raise ValueError(
            "model_type 'llama' needs d_model to be a multiple of num_heads, got"
            f" {config.d_model} and {config.num_heads}; pass model_type='mistral'."
        )
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"tokenizer must have at most vocab_size={config.vocab_size} tokens, got"
            f" {len(tokenizer)}; save the one that the model was trained with."
        )
    # Explicit nulls: transformers would take 1 and 2 for the ends of any Llama.
    ids = {f"{name}_token_id": None for name in ("bos", "eos", "pad")}
    if tokenizer is not None:
        ids = {key: getattr(tokenizer, key) for key in ids}
    model = {
        "architectures": [family.architecture],
        "model_type": model_type,
        "torch_dtype": dtype,
        "hidden_act": "silu",
        **{key: getattr(config, field) for field, key in _KEYS.items()},
        **{key: supported[0] for key, supported in family.supported.items()},
    }
    contradicts = {k: v for k, v in extra.items() if model.get(k, v) != v}
    if contradicts:
        kept = {k: model[k] for k in contradicts}
        raise ValueError(f"extra must not change {kept}, got {contradicts}.")
    entries = {**ids, **extra, **model}
    _decoder_config(entries, pathlib.Path("extra"))
    return entries


def _shapes(config: DecoderConfig):
    """The decoder's parameter tree, shapes only; nothing is computed."""
    return jax.eval_shape(lambda: decoder_policy(config).init(jax.random.key(0)))


def _by_tensor_name(shapes) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape in the file."""
    flat = jax.tree_util.tree_leaves_with_path(shapes)
    return {
        _tensor_name(p): x.shape[::-1] if _is_kernel(p) else x.shape for p, x in flat
    }


def _tensor_name(path) -> str:
    """layers_0/q/kernel -> model.layers.0.self_attn.q_proj.weight."""
    *modules, leaf = (entry.key for entry in path)
    layer, *rest = modules[0].rpartition("_"), *modules[1:]
    if layer[0] == "layers":
        stem = f"model.layers.{layer[2]}.{_LAYER_MODULES[rest[0]]}"
    else:
        stem = _MODULES[modules[0]]
    return f"{stem}.{'bias' if leaf == 'bias' else 'weight'}"
