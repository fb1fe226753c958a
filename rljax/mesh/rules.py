"""The table of a mesh: logical axes of arrays, and the mesh axes that split them."""

import dataclasses
import math
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec

DATA, FSDP, EXPERT, TENSOR = "data", "fsdp", "expert", "tensor"
AXES = (DATA, FSDP, EXPERT, TENSOR)
"""Mesh axes, the one whose devices are nearest to each other last."""

SEQUENCE = "sequence"
"""A mesh axis that is kept for T inside attention, and that no mesh may have yet."""

FREE = PartitionSpec.UNCONSTRAINED
"""What a hint says of an axis that it leaves to the compiler."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The mesh axes that split each logical axis.

    Those that a mesh does not have split nothing. Of one array, a mesh axis splits the
    first logical axis that asks for it.

    prompts: P of prompts, rollouts, credits and caches.
    rows: the flat axis [P * G * T] of activations between layers. With `tensor` in it
      activations are split along tokens there, too (Megatron's sequence parallelism).
    embed: d_model of stored parameters; they are gathered where they are used.
    heads: key/value heads, and the query heads of each.
    mlp: width inside the feed-forward network.
    vocab: rows of the embedding, columns of the head, logits.
    experts: experts of a mixture.
    dispatch: of these, the axes along which rows come to the experts instead of experts
      to the rows; they must split `rows`, too.
    layers: the axis of stacked layers.
    """

    prompts: tuple[str, ...] = (DATA, FSDP, EXPERT)
    rows: tuple[str, ...] = (DATA, FSDP, EXPERT)
    embed: tuple[str, ...] = (FSDP, EXPERT)
    heads: tuple[str, ...] = (TENSOR,)
    mlp: tuple[str, ...] = (TENSOR,)
    vocab: tuple[str, ...] = (TENSOR,)
    experts: tuple[str, ...] = (EXPERT,)
    dispatch: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        for name, axes in vars(self).items():
            if not (
                isinstance(axes, tuple) and all(isinstance(axis, str) for axis in axes)
            ):
                raise ValueError(
                    f"{name} must be a tuple of names of mesh axes, got {axes!r}; write"
                    f" {name}=('fsdp',), or () for none."
                )
        if not set(self.dispatch) <= {*self.experts} & {*self.rows}:
            raise ValueError(
                "dispatch must be mesh axes that split experts and rows, got"
                f" {self.dispatch} beside experts={self.experts} and rows={self.rows};"
                " add them there, too."
            )


ONLY_PROMPTS = Rules(
    prompts=AXES,
    rows=AXES,
    embed=(TENSOR, FSDP, EXPERT),  # tensor first: what sampling keeps is the outer part
    heads=(),
    mlp=(),
    vocab=(),
)
"""Pure FSDP: every device has prompts of its own; `tensor` splits parameters as `fsdp`
does."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The two rule sets of a run.

    Decoding reads all weights for each token, so they had better stay split, experts,
    too; an update works on so many tokens that gathering weights costs less than moving
    activations.

    sample: while completions are decoded.
    update: for all the rest. Parameters, optimiser and references are stored by it.
    """

    sample: Rules = Rules(dispatch=(EXPERT,))
    update: Rules = Rules()


PLAIN = Layout()

Names = tuple[str | None, ...]

# What the rows and columns of a layer's matrices are.
_MATRICES = {
    **dict.fromkeys(("q", "k", "v"), ("embed", "heads")),
    "o": ("heads", "embed"),
    **dict.fromkeys(("gate", "up"), ("embed", "mlp")),
    "down": ("mlp", "embed"),
}


def _of_module(name: str, rows: str, columns: str) -> dict[tuple, Names]:
    return {
        (name, "kernel"): ("layers", rows, columns),
        (name, "bias"): ("layers", columns),
        (name, "lora_a"): ("layers", rows, None),
        (name, "lora_b"): ("layers", None, columns),
        ("experts", name, "kernel"): ("layers", "experts", rows, columns),
    }


# Logical axes of a decoder's parameters, by the last keys of their paths. Moments,
# references, averages and masters have the same, as they end in the same keys. What is
# not here is copied to every device.
_PARAMETERS: dict[tuple, Names] = {
    ("embed", "embedding"): ("vocab", "embed"),
    ("head", "kernel"): ("embed", "vocab"),
    ("router", "kernel"): ("layers", "embed", None),
}
for _name, _axes in _MATRICES.items():
    _PARAMETERS |= _of_module(_name, *_axes)


def logical_axes(path: tuple, ndim: int, *, of_one_layer: bool = False) -> Names:
    """Names of the axes of a leaf with this path; None for those without.

    Args:
      of_one_layer: whether the axis of layers may be missing.
    """
    keys = tuple(getattr(key, "key", getattr(key, "name", None)) for key in path)
    for names in (_PARAMETERS.get(keys[-3:], ()), _PARAMETERS.get(keys[-2:], ())):
        if len(names) == ndim:
            return names
        if of_one_layer and names[:1] == ("layers",) and len(names) == ndim + 1:
            return names[1:]
    return (None,) * ndim


def is_key(x: jax.Array) -> bool:
    """Whether an array holds PRNG keys, which are copied to every device."""
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def partition(
    rules: Rules, names: tuple, sizes: Mapping[str, int], shape: tuple[int, ...] = ()
) -> PartitionSpec:
    """How the mesh axes of `sizes` split an array with these logical axes.

    Args:
      names: of each axis: a field of `Rules`, None for one that stays whole, or FREE.
      sizes: devices along the mesh axes.
      shape: of the array. An axis that its mesh axes do not divide is split by as many
        of them as do. Empty: nobody looks.
    """
    used: set[str] = set()

    def split(i, name):
        if name is None or name is FREE:
            return name
        found: list[str] = []
        for axis in getattr(rules, name):
            if axis not in sizes or axis in used:
                continue
            parts = math.prod(sizes[a] for a in (*found, axis))
            if shape and shape[i] % parts:
                break
            found.append(axis)
        used.update(found)
        return tuple(found) or None

    return PartitionSpec(*(split(i, name) for i, name in enumerate(names)))


def axes_of(entry) -> tuple[str, ...]:
    """The mesh axes of an entry of a `PartitionSpec`, which stores one as its name."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
