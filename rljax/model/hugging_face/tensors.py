"""Maps the tensors of the files to the parts of the decoder's parameters.

The decoder itself gives the parameters and their shapes; the tables below only
translate names. A family with other names has them in `Family.tensors`.
"""

import itertools
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
    """A part of a parameter, stored as consecutive rows of a tensor.

    path: of the parameter, its keys joined by dots.
    index: of the part in the parameter: (), (layer,) or (layer, expert).
    shape: of the part in the file.
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
    """The decoder's parameter tree as jax.ShapeDtypeStructs; computes nothing."""
    return jax.eval_shape(lambda: decoder_policy(config).init(jax.random.key(0)))


def by_path(params: Any) -> dict[str, Any]:
    """Path -> parameter, with the paths of `Part`."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {".".join(entry.key for entry in path): x for path, x in leaves}


def parts(config: DecoderConfig, family: Family) -> dict[str, list[Part]]:
    """Tensor name -> its parts, in the order of their rows."""
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
        for index in itertools.product(*map(range, x.shape[:depth])):
            tensor = f"{name}.{kind}"
            if depth:
                tensor = f"model.layers.{index[0]}.{tensor}"
                tensor = tensor.replace("{expert}", str(index[-1]))
            above = found.setdefault(tensor, [])
            start = sum(part.shape[0] for part in above)
            above.append(Part(f"{module}{dot}{leaf}", index, shape, start))
    return found


def shape_of(stacked: list[Part]) -> tuple[int, ...]:
    """The shape of the tensor that consists of these parts."""
    return (sum(part.shape[0] for part in stacked), *stacked[0].shape[1:])


def size_of(stacked: list[Part]) -> int:
    """The number of elements of the tensor that consists of these parts."""
    return math.prod(shape_of(stacked))
