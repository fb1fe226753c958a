"""Reads and writes LoRA adapters in PEFT's format, without torch or peft.

    adapter_config.json          rank, alpha, targets
    adapter_model.safetensors    base_model.model.model.layers.0.self_attn.q_proj.
                                 lora_A.weight [r, in], lora_B.weight [out, r], ...

Phi-3 stores q, k and v in one tensor, and gate and up in another. PEFT has one adapter
per tensor, with one factor A. rljax has an adapter per matrix. It writes those of one
tensor as a single adapter whose rank is the sum of their ranks and whose B is
block-diagonal, which computes the same product.
"""

import os
import pathlib
import re
import secrets
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from rljax import strict_json
from rljax.model.config import DecoderConfig
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
_FUSED = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up")}
_TARGETS = {
    **{module.split(".")[1]: (name,) for name, module in _MODULES.items()},
    **{module.split(".")[1]: names for module, names in _FUSED.items()},
}
_FACTORS = ("lora_A", "lora_B")
_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.(lora_[AB])\.weight"
)

# Options of PEFT that change what an adapter computes -> value that `Lora` supports.
_PLAIN = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
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
      adapters: of a decoder, {"layers": {name: {lora_a, lora_b}}}; other leaves of the
        tree are ignored.
      spec: that the adapters were made with.
      base_model: name or path of the base model, for PEFT's `base_model_name_or_path`.
      model_type: family of the base model, as in its config.json.

    Raises:
      ValueError: if `path` is taken, or for targets that `require_whole` refuses.
    """
    modules = _modules(spec, model_type)
    target = pathlib.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"path must not exist yet or be an empty folder, got {str(target)!r};"
            " choose another, or remove it first."
        )
    tensors = {}
    layers = jax.tree.map(np.asarray, adapters["layers"])  # indexing would compile
    for module, names in modules.items():
        parts = [layers[name] for name in names]
        for i in range(len(parts[0][lora.A])):
            a, b = (
                [np.asarray(x[leaf][i]).T for x in parts] for leaf in (lora.A, lora.B)
            )
            # safetensors writes raw memory, so the arrays must be contiguous.
            joined = np.ascontiguousarray(np.concatenate(a))
            tensors[_tensor(i, module, "lora_A")] = joined
            tensors[_tensor(i, module, "lora_B")] = _diagonal(b)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        safetensors.numpy.save_file(
            tensors, partial / WEIGHTS, metadata={"format": "pt"}
        )
        weights.write_json(partial / CONFIG, _entries(spec, base_model, modules))
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def require_whole(spec: Lora, model_type: str) -> None:
    """Raises ValueError if targets are a part of the matrices that share a tensor."""
    _modules(spec, model_type)


def _modules(spec: Lora, model_type: str) -> dict[str, tuple[str, ...]]:
    """The adapted modules of a family's files -> the targets that each one holds."""
    fused = FAMILIES[model_type].tensors
    found: dict[str, tuple[str, ...]] = {}
    for name in lora.TARGETS:
        module = fused.get(name, _MODULES[name])
        if name not in spec.targets or module in found:
            continue
        names = _FUSED.get(module, (name,))
        if apart := [n for n in names if n not in spec.targets]:
            raise ValueError(
                f"targets must name all of {', '.join(names)} or none, because the"
                f" files of {model_type} hold them in one tensor, got no"
                f" {', '.join(apart)}; add the missing targets or leave all out."
            )
        found[module] = names
    return found


def _diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    """The block-diagonal matrix of these blocks, each [out, rank]."""
    rank = blocks[0].shape[1]
    rows = [
        np.pad(x, ((0, 0), (i * rank, (len(blocks) - 1 - i) * rank)))
        for i, x in enumerate(blocks)
    ]
    return np.ascontiguousarray(np.concatenate(rows))


def described(path: str | os.PathLike) -> Lora:
    """The `Lora` of the adapters in a local folder; reads no weights.

    Raises:
      ValueError: naming the file, as `load` does.
    """
    file = pathlib.Path(path) / CONFIG
    return _spec(strict_json.read_file(file), file)[0]


def load(
    path: str | os.PathLike, config: DecoderConfig | None = None
) -> tuple[Lora, dict[str, Any]]:
    """Reads the adapters in a local folder: `spec, adapters = load(path)`.

    Join them with the base's parameters by `frozen.joined(adapters, params)`. If PEFT
    has one factor A for several targets, each target gets a copy; training changes the
    copies independently.

    Args:
      path: the folder.
      config: of the base; needed for adapters of tensors that hold several matrices.

    Returns:
      The `Lora` they were made with, and the adapters, in float32.

    Raises:
      ValueError: naming the file, if it is missing or broken, if adapters use options
        that `Lora` does not support (DoRA, ranks per module, trained biases), or if
        tensors are missing, unexpected or of a wrong shape.
    """
    folder = pathlib.Path(path)
    spec, ranks = _spec(strict_json.read_file(folder / CONFIG), folder / CONFIG)
    file = folder / WEIGHTS
    try:
        tensors = safetensors.numpy.load_file(file)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file}: broken: {error}; download it again.") from error
    num_layers = 1 + max(
        (int(m[1]) for m in map(_NAME.fullmatch, tensors) if m), default=0
    )
    expected = {
        _tensor(i, module, factor)
        for i in range(num_layers)
        for module in ranks
        for factor in _FACTORS
    }
    if differ := sorted(expected ^ tensors.keys()):
        raise ValueError(
            f"{file}: must hold both factors of {', '.join(ranks)} in each of"
            f" {num_layers} layers, but these are missing or not expected:"
            f" {', '.join(differ[:4])}; {CONFIG} belongs to other adapters."
        )
    layers: dict[str, dict] = {}
    for module, rank in ranks.items():
        a, b = (
            _stacked(file, tensors, num_layers, module, factor, rank)
            for factor in _FACTORS
        )
        names = _FUSED.get(module, _TARGETS[module.split(".")[1]])
        if len(names) > 1:
            layers |= _parted(file, a, b, names, spec.rank, config)
        else:
            layers[names[0]] = {lora.A: a, lora.B: b}
    return spec, {"layers": jax.tree.map(jnp.asarray, layers)}


def _tensor(layer: int, module: str, factor: str) -> str:
    return f"base_model.model.model.layers.{layer}.{module}.{factor}.weight"


def _stacked(file, tensors, num_layers: int, module: str, factor: str, rank: int):
    parts = [tensors[_tensor(i, module, factor)] for i in range(num_layers)]
    shapes = {x.shape for x in parts}
    axis = 0 if factor == "lora_A" else 1
    if len(shapes) > 1 or parts[0].ndim != 2 or parts[0].shape[axis] != rank:
        raise ValueError(
            f"{file}: {factor} of {module} must have rank {rank} along axis {axis} in"
            f" all layers, got shapes {sorted(shapes)}; {CONFIG} belongs to other"
            " adapters."
        )
    return np.stack([x.T.astype(np.float32) for x in parts])


def _parted(file, a, b, names, rank: int, config: DecoderConfig | None):
    """Splits one adapter of several targets, a [L, in, R] and b [L, R, out]."""
    if config is None:
        raise ValueError(
            f"{file}: {', '.join(names)} share one adapter, which is split by their"
            " widths, got no config; pass that of the base model."
        )
    width = config.num_kv_heads * config.head_dim
    widths = {
        **{"q": config.num_heads * config.head_dim, "k": width, "v": width},
        **{"gate": config.d_ff, "up": config.d_ff},
    }
    ends = np.cumsum([widths[name] for name in names])
    columns = np.split(b, ends[:-1], axis=-1)
    found = {}
    for i, (name, own) in enumerate(zip(names, columns, strict=True)):
        rows = slice(None)
        if a.shape[-1] > rank:  # written by `save`: `rank` rows for each target
            rows = slice(i * rank, (i + 1) * rank)
            others = np.delete(own, np.arange(own.shape[1])[rows], axis=1)
            if np.any(others):
                raise ValueError(
                    f"{file}: lora_B of {len(names)} times the rank must be"
                    " block-diagonal, as rljax writes it, got nonzero numbers outside"
                    " the blocks; merge these adapters with peft and load the whole"
                    " model."
                )
        found[name] = {lora.A: a[..., rows], lora.B: own[:, rows]}
    if ends[-1] != b.shape[-1]:
        raise ValueError(
            f"{file}: lora_B must have {ends[-1]} rows, the sum for {', '.join(names)},"
            f" got {b.shape[-1]}; the adapters belong to another model."
        )
    return found


def _entries(
    spec: Lora, base_model: str | None, modules: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    """The keys of adapter_config.json that have no suitable default in PEFT."""
    several = {m.split(".")[1]: len(names) for m, names in modules.items()}
    several = {leaf: count for leaf, count in several.items() if count > 1}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": spec.rank_stabilised,
        "target_modules": [module.split(".")[1] for module in modules],
        "rank_pattern": {leaf: spec.rank * n for leaf, n in several.items()},
        "alpha_pattern": {leaf: _alpha(spec, n) for leaf, n in several.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _alpha(spec: Lora, count: int) -> float:
    """The alpha that keeps the adapter's scale at `count` times the rank."""
    return spec.alpha * (count**0.5 if spec.rank_stabilised else count)


def _spec(entries: dict[str, Any], file: pathlib.Path) -> tuple[Lora, dict[str, int]]:
    """The `Lora` that a config describes, and module -> rank of its adapter."""
    for key, plain in _PLAIN.items():
        got = entries.get(key, plain)
        if got != plain and got:  # PEFT writes null, {} or [] for an unused option
            raise ValueError(
                f"{file}: {key} must be {plain!r}, as in plain LoRA, got {got!r};"
                " merge these adapters with peft and load the whole model."
            )
    leaves = entries.get("target_modules")
    if not isinstance(leaves, list) or not set(leaves) <= set(_TARGETS):
        raise ValueError(
            f"{file}: target_modules must be a list of {', '.join(_TARGETS)}, got"
            f" {leaves!r}; merge these adapters with peft and load the whole model."
        )
    targets = {name for leaf in leaves for name in _TARGETS[leaf]}
    try:
        spec = Lora(
            rank=entries["r"],
            alpha=float(entries["lora_alpha"]),
            rank_stabilised=bool(entries.get("use_rslora")),
            targets=tuple(name for name in lora.TARGETS if name in targets),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: r and lora_alpha must be numbers: {error}") from None
    known: dict[str, tuple[str, ...]] = {m: (n,) for n, m in _MODULES.items()}
    known |= _FUSED
    chosen = {m: names for m, names in known.items() if m.split(".")[1] in leaves}
    whole = _entries(spec, None, chosen)
    for key in ("rank_pattern", "alpha_pattern"):
        got = entries.get(key) or {}
        if got not in ({}, whole[key]):
            raise ValueError(
                f"{file}: {key} must be {{}}, or {whole[key]}, got {got!r}; merge these"
                " adapters with peft and load the whole model."
            )
    pattern = entries.get("rank_pattern") or {}
    return spec, {m: pattern.get(m.split(".")[1], spec.rank) for m in chosen}
