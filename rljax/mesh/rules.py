"""The two tables of sharding: logical axis -> mesh axes, parameter -> logical axes."""

import dataclasses
import math
from collections.abc import Mapping

import jax
from jax.sharding import PartitionSpec

DATA, FSDP, EXPERT, TENSOR = "data", "fsdp", "expert", "tensor"
AXES = (DATA, FSDP, EXPERT, TENSOR)
"""All mesh axes; devices along the last one are the closest to each other."""

SEQUENCE = "sequence"
"""A name reserved for sharding T inside attention; no mesh may have this axis yet."""

FREE = PartitionSpec.UNCONSTRAINED
"""In a constraint: an axis whose sharding XLA chooses."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """The mesh axes that split each logical axis.

    Mesh axes that a mesh does not have are ignored. A mesh axis splits only the first
    logical axis of an array that asks for it.

    prompts: P of prompts, rollouts, credits and caches.
    rows: the flat axis [P * G * T] of activations between layers. If it includes
      `tensor`, activations are split along tokens (Megatron's sequence parallelism).
    embed: d_model of stored parameters, which are gathered when they are used.
    heads: key/value heads, together with their query heads.
    mlp: hidden width of the feed-forward network.
    vocab: rows of the embedding, columns of the head, logits.
    experts: experts of a mixture.
    dispatch: a subset of `experts` and `rows`: the axes along which rows move to the
      experts. Along the other axes of `experts`, experts move to the rows.
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
                f" {self.dispatch} with experts={self.experts} and rows={self.rows};"
                " add them to both."
            )


ONLY_PROMPTS = Rules(
    prompts=AXES,
    rows=AXES,
    embed=(TENSOR, FSDP, EXPERT),  # tensor first: sampling keeps this outermost split
    heads=(),
    mlp=(),
    vocab=(),
)
"""Pure FSDP: every device has its own prompts, and `tensor` acts like `fsdp`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The two rule sets of a run.

    Decoding reads all weights for each token, so weights and experts should stay split.
    An update processes so many tokens that gathering weights costs less than moving
    activations.

    sample: rules while completions are decoded.
    update: rules for everything else; parameters, optimiser state and references are
      stored by them.
    """

    sample: Rules = Rules(dispatch=(EXPERT,))
    update: Rules = Rules()


PLAIN = Layout()

Names = tuple[str | None, ...]

# Logical axes of the rows and columns of a layer's matrices, also of joined ones.
_MATRICES = {
    **dict.fromkeys(("q", "k", "v", "q_k_v"), ("embed", "heads")),
    "o": ("heads", "embed"),
    **dict.fromkeys(("gate", "up", "gate_up"), ("embed", "mlp")),
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


# Last keys of a path -> logical axes of the decoder's parameter. Moments, references,
# averages and master weights have the same axes, because their paths end in the same
# keys. Leaves that are not in this table are replicated.
_PARAMETERS: dict[tuple, Names] = {
    ("embed", "embedding"): ("vocab", "embed"),
    ("head", "kernel"): ("embed", "vocab"),
    ("router", "kernel"): ("layers", "embed", None),
}
for _name, _axes in _MATRICES.items():
    _PARAMETERS |= _of_module(_name, *_axes)


def logical_axes(path: tuple, ndim: int, *, of_one_layer: bool = False) -> Names:
    """The logical axis of each axis of a leaf; None for an axis that is never split.

    Args:
      path: of the leaf in a state.
      ndim: of the leaf.
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
    """Whether an array holds PRNG keys, which are replicated."""
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def partition(
    rules: Rules, names: tuple, sizes: Mapping[str, int], shape: tuple[int, ...] = ()
) -> PartitionSpec:
    """The sharding of an array with the given logical axes.

    Args:
      rules: logical axis -> mesh axes.
      names: for each axis, a field of `Rules`, None for replicated, or FREE.
      sizes: mesh axis -> devices along it.
      shape: of the array. If the mesh axes do not divide an axis, it is split by the
        first few that do. (): divisibility is not checked.
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
    """The mesh axes in one entry of a `PartitionSpec`: None, a name or a tuple."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())
