"""Which tensors of the files are which parts of the decoder's parameters.

Parameters and their shapes are read off the decoder; the tables below only translate
names. A family with other names says so in its row, `Family.tensors`.
"""

import math
from typing import Any, NamedTuple

import jax

from rljax.model.config import DecoderConfig
from rljax.model.decoder import decoder_policy
from rljax.model.hugging_face.family import Family

_MODULES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
HEAD, EMBED = (f"{_MODULES[module]}.weight" for module in ("head", "embed"))

_LAYER_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "experts.router": "mlp.gate",
    "experts.gate": "mlp.experts.{expert}.gate_proj",
    "experts.up": "mlp.experts.{expert}.up_proj",
    "experts.down": "mlp.experts.{expert}.down_proj",
    "experts.shared.weigh": "mlp.shared_expert_gate",
    "experts.shared.gate": "mlp.shared_expert.gate_proj",
    "experts.shared.up": "mlp.shared_expert.up_proj",
    "experts.shared.down": "mlp.shared_expert.down_proj",
}
_NORMS = {
    "before": {
        "norm_attention": "input_layernorm",
        "norm_mlp": "post_attention_layernorm",
    },
    "after": {
        "norm_attention_out": "post_attention_layernorm",
        "norm_mlp_out": "post_feedforward_layernorm",
    },
    "both": {
        "norm_attention": "input_layernorm",
        "norm_attention_out": "post_attention_layernorm",
        "norm_mlp": "pre_feedforward_layernorm",
        "norm_mlp_out": "post_feedforward_layernorm",
    },
}


class Part(NamedTuple):
    """A part of a parameter that is some rows of a tensor, or all of them.

    path: of the parameter, its keys joined by dots.
    index: of the part in the parameter: (), (layer,) or (layer, expert).
    shape: in the file.
    start: its first row in the tensor.
    """

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    start: int

    @property
    def transposed(self) -> bool:
        """Kernels are [in, out] in the decoder and [out, in] in the file."""
        return self.path.endswith(".kernel")


def shapes(config: DecoderConfig) -> Any:
    """The decoder's parameter tree, shapes only; nothing is computed."""
    return jax.eval_shape(lambda: decoder_policy(config).init(jax.random.key(0)))


def by_path(params: Any) -> dict[str, Any]:
    """Path -> parameter, as `Part` names them."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(entry.key for entry in path): x for path, x in leaves}


def parts(config: DecoderConfig, family: Family) -> dict[str, list[Part]]:
    """Tensor name -> the parts of it, which lie one below the other."""
    names = {**_LAYER_MODULES, **_NORMS[config.norms], **family.tensors}
    order = [*_MODULES, *(f"layers.{module}" for module in names)]
    leaves = [(*path.rpartition("."), x) for path, x in by_path(shapes(config)).items()]
    leaves.sort(key=lambda leaf: order.index(leaf[0]))
    found: dict[str, list[Part]] = {}
    for module, dot, leaf, x in leaves:
        inside = module.removeprefix("layers.")
        name = _MODULES[module] if inside == module else names[inside]
        kind = "bias" if leaf == "bias" else "weight"
        depth = (inside != module) + ("{expert}" in name)
        shape = x.shape[depth:]
        shape = shape[::-1] if leaf == "kernel" else shape
        for index in _indices(x.shape[:depth]):
            tensor = f"{name}.{kind}"
            if depth:
                tensor = f"model.layers.{index[0]}.{tensor}"
                tensor = tensor.replace("{expert}", str(index[-1]))
            above = found.setdefault(tensor, [])
            start = sum(part.shape[0] for part in above)
            above.append(Part(f"{module}{dot}{leaf}", index, shape, start))
    return found


def shape_of(stacked: list[Part]) -> tuple[int, ...]:
    """Of the tensor that the parts make."""
    return (sum(part.shape[0] for part in stacked), *stacked[0].shape[1:])


def size_of(stacked: list[Part]) -> int:
    """Numbers in the tensor."""
    return math.prod(shape_of(stacked))


def _indices(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for size in sizes:
        found = [(*index, i) for index in found for i in range(size)]
    return found
