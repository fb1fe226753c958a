"""LoRA adapters as PEFT's folders, read and written without torch or peft.

    adapter_config.json          rank, alpha, targets
    adapter_model.safetensors    base_model.model.model.layers.0.self_attn.q_proj.
                                 lora_A.weight [r, in], lora_B.weight [out, r], ...

For targets that have a tensor of their own in the model's files. Phi-3 holds queries,
keys and values in one, and gate and up: these are refused.
"""

import os
import pathlib
import re
import secrets
import shutil
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rljax import strict_json
from rljax.model.hugging_face import weights
from rljax.model.hugging_face.family import FAMILIES
from rljax.policy import lora
from rljax.policy.lora import Lora

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_TARGETS = {module.split(".")[1]: name for name, module in _MODULES.items()}
_FACTORS = {"lora_A": lora.A, "lora_B": lora.B}
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.(lora_[AB])\.weight"
)

# What changes the product, each with the value that leaves it as `Lora` has it.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "layers_to_transform": None,
    "layer_replication": None,
    "exclude_modules": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "use_qalora": False,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
}


def save(
    path: str | os.PathLike,
    adapters: dict[str, Any],
    spec: Lora,
    *,
    base_model: str | None = None,
    model_type: str = "llama",
) -> None:
    """Writes a folder that `PeftModel.from_pretrained(base, path)` reads.

    Args:
      path: the folder to make; must not exist, or be empty.
      adapters: a decoder's, {"layers": {name: {lora_a, lora_b}}}; other leaves of the
        tree are not read.
      spec: as they were made.
      base_model: name or path of the model below, for PEFT's `base_model_name_or_path`.
      model_type: its family, as in its config.json.

    Raises:
      ValueError: if `path` is taken, or as `require_apart`.
    """
    require_apart(spec, model_type)
    target = pathlib.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"path must not exist yet or be an empty folder, got {str(target)!r};"
            " choose another, or remove it first."
        )
    tensors = {}
    for name in spec.targets:
        for factor, leaf in _FACTORS.items():
            stacked = np.asarray(adapters["layers"][name][leaf])
            for i, one in enumerate(stacked):
                tensors[_tensor(i, name, factor)] = np.ascontiguousarray(one.T)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        safetensors.numpy.save_file(
            tensors, partial / WEIGHTS, metadata={"format": "pt"}
        )
        weights.write_json(partial / CONFIG, _entries(spec, base_model))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_apart(spec: Lora, model_type: str) -> None:
    """Raises ValueError if a target is no tensor of its own in the family's files."""
    fused = [name for name in spec.targets if name in FAMILIES[model_type].tensors]
    if fused:
        apart = [name for name in spec.targets if name not in fused] or ["o", "down"]
        raise ValueError(
            f"targets must have tensors of their own in the files of {model_type}, got"
            f" {', '.join(fused)}, which they hold in one with others; adapt"
            f" {', '.join(apart)}."
        )


def load(path: str | os.PathLike) -> tuple[Lora, dict[str, Any]]:
    """The adapters in a local folder: `spec, adapters = load(path)`, in float32.

    Put them beside their base with `frozen.joined(adapters, params)`.

    Raises:
      ValueError: naming the file, if it is missing or broken, if adapters are of a kind
        that `Lora` has not (DoRA, ranks by module, trained biases), or if tensors are
        missing, unexpected or of a wrong shape.
    """
    folder = pathlib.Path(path)
    spec = _spec(strict_json.read_file(folder / CONFIG), folder / CONFIG)
    file = folder / WEIGHTS
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file}: broken: {error}; download it again.") from error
    num_layers = 1 + max(
        (int(m[1]) for m in map(_NAME.fullmatch, tensors) if m), default=0
    )
    expected = {
        _tensor(i, name, factor)
        for i in range(num_layers)
        for name in spec.targets
        for factor in _FACTORS
    }
    if differ := sorted(expected ^ tensors.keys()):
        raise ValueError(
            f"{file}: must hold both factors of {', '.join(spec.targets)} in each of"
            f" {num_layers} layers, but these are missing or not expected:"
            f" {', '.join(differ[:4])}; {CONFIG} belongs to other adapters."
        )
    layers = {
        name: {
            leaf: _stacked(file, tensors, num_layers, name, factor, spec.rank)
            for factor, leaf in _FACTORS.items()
        }
        for name in spec.targets
    }
    return spec, {"layers": layers}


def _tensor(layer: int, name: str, factor: str) -> str:
    return f"base_model.model.model.layers.{layer}.{_MODULES[name]}.{factor}.weight"


def _stacked(file, tensors, num_layers: int, name: str, factor: str, rank: int):
    parts = [tensors[_tensor(i, name, factor)] for i in range(num_layers)]
    shapes = {x.shape for x in parts}
    axis = 0 if factor == "lora_A" else 1
    if len(shapes) > 1 or parts[0].ndim != 2 or parts[0].shape[axis] != rank:
        raise ValueError(
            f"{file}: {factor} of {_MODULES[name]} must have rank {rank} along axis"
            f" {axis}, in all layers alike, got {sorted(shapes)}; {CONFIG} belongs to"
            " other adapters."
        )
    return jnp.stack([x.T.astype(np.float32) for x in parts])


def _entries(spec: Lora, base_model: str | None) -> dict[str, Any]:
    """What PEFT reads of adapter_config.json; the rest has defaults there."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.rank_stabilised,
        "target_modules": [_MODULES[name].split(".")[1] for name in spec.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _spec(entries: dict[str, Any], file: pathlib.Path) -> Lora:
    for key, plain in _PLAIN.items():
        got = entries.get(key, plain)
        if got != plain and got:  # PEFT writes null, {} and [] for none
            raise ValueError(
                f"{file}: {key} must be {plain!r}, the plain form of LoRA, got {got!r};"
                " merge these adapters with peft and load the whole model."
            )
    modules = entries.get("target_modules")
    if not isinstance(modules, list) or not set(modules) <= set(_TARGETS):
        raise ValueError(
            f"{file}: target_modules must be a list of {', '.join(_TARGETS)}, got"
            f" {modules!r}; merge these adapters with peft and load the whole model."
        )
    targets = {_TARGETS[module] for module in modules}
    try:
        return Lora(
            rank=entries["r"],
            alpha=float(entries["lora_alpha"]),
            rank_stabilised=bool(entries.get("use_rslora")),
            targets=tuple(name for name in lora.TARGETS if name in targets),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: r and lora_alpha must be numbers: {error}") from None
