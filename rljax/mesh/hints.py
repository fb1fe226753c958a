"""Hints for the compiler, in traced code; without a mesh every one is the identity.

The compiler splits what is computed (automatic axes), told at few places where arrays
lie. Hints leave the axes that they do not name to it: a closed axis would say "whole
on every device". What it cannot do by itself is done by hand in `by_prompts`.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from rljax import processes
from rljax.mesh import devices
from rljax.mesh.rules import (
    FREE,
    PLAIN,
    Layout,
    Rules,
    axes_of,
    logical_axes,
    partition,
)

# (layout, whether sampling); a part of the key under which jit keeps programs.
_context = jax.make_user_context(default_value=None)
_put = jax.lax.with_sharding_constraint


@contextlib.contextmanager
def using(mesh: Mesh | None, layout: Layout = PLAIN) -> Iterator[None]:
    """`with using(mesh):` runs and traces on the mesh; None changes nothing."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), _context((layout, False)):
        yield


def alone() -> contextlib.AbstractContextManager:
    """`with alone():` runs on a device of this process, whatever the others do."""
    if processes.count() == 1:
        return contextlib.nullcontext()
    return using(devices.make(jax.local_devices()[:1]))


@contextlib.contextmanager
def sampling() -> Iterator[None]:
    """What is traced inside follows the rules of sampling."""
    if size() == 1:
        yield
        return
    with _context((layout(), True)):
        yield


def layout() -> Layout:
    """The layout in use."""
    return PLAIN if _context.value is None else _context.value[0]


def rules() -> Rules:
    """The rules in use."""
    samples = _context.value is not None and _context.value[1]
    return layout().sample if samples else layout().update


def sizes() -> dict[str, int]:
    """Devices along those mesh axes in use that the compiler splits by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {a: n for a, n in mesh.shape.items() if a not in mesh.manual_axes}


def size(*axes: str) -> int:
    """Devices along mesh axes, of all if none are named; 1 without a mesh."""
    there = sizes()
    return math.prod(there.get(axis, 1) for axis in axes or there)


def parts(name: str) -> int:
    """Into how many parts the rules in use split this logical axis."""
    return size(*getattr(rules(), name))


def keep(x: jax.Array, *names) -> jax.Array:
    """`x`, lying as the rules in use say of its first axes.

    Args:
      names: of each axis: a field of `Rules`, None for one that stays whole, FREE, as
        are those behind.
    """
    if size() == 1:
        return x
    free = (FREE,) * (x.ndim - len(names))
    return _put(x, partition(rules(), (*names, *free), sizes()))


def constrain(tree):
    """Keeps the first axis of every array, P, spread; scalars stay as they are."""
    if size() == 1:
        return tree
    return jax.tree.map(lambda x: keep(x, "prompts") if jnp.ndim(x) else x, tree)


def keep_state(tree):
    """Parameters, and all that mirrors them, as they are stored."""
    if size() == 1:
        return tree
    return jax.tree.map_with_path(lambda path, x: _put(x, _stored(path, x)), tree)


def gather(params, dtype: Any = None):
    """Parameters as products use them: whole along `embed`, split as the rules say.

    Their gradients go back to where parameters are stored. By itself the transpose of a
    constraint is the same constraint: whole gradients on every device.

    Args:
      dtype: what is gathered is cast to it first, as every product would.
    """
    if size() == 1:
        return params

    def use(path, x):
        names = logical_axes(path, x.ndim, of_one_layer=True)
        if not any(names):
            return x
        stored = partition(layout().update, names, sizes(), x.shape)
        whole = tuple(None if name == "embed" else name for name in names)
        used = partition(rules(), whole, sizes(), x.shape)
        if used == stored:
            return x
        return _moved(x if dtype is None else x.astype(dtype), stored, used)

    return jax.tree.map_with_path(use, params)


def unless_gathered(primitive, *_, **__) -> bool:
    """A policy for `jax.checkpoint`: keeps everything but what a hint has moved.

    Otherwise the backward pass keeps the gathered weights of all layers.
    """
    return primitive.name != "sharding_constraint"


def by_prompts(fn: Callable, params, *trees):
    """`fn(params, *trees)` of trees [P, ...], each device on its own prompts.

    For the embedding and the head. They are gathered first, and their gradients are
    summed over rows on each device, then scattered once. Left to the compiler, sums
    within a loop would be scattered at each turn, as a loop cannot carry what is not
    summed over devices; and for the embedding's it would gather activations.
    """
    there = sizes()
    axes = tuple(a for a in rules().prompts if there.get(a, 1) > 1)
    if not axes or len(jax.tree.leaves(trees)[0]) % size(*axes):
        return fn(gather(params), *trees)
    specs = jax.tree.map_with_path(
        lambda path, x: _only(_stored(path, x), axes), params
    )

    def of_device(params, *trees):
        return fn(jax.tree.map(_whole, params, specs), *trees)

    return jax.shard_map(
        of_device,
        in_specs=(specs, *(PartitionSpec(axes) for _ in trees)),
        out_specs=PartitionSpec(axes),
        axis_names=set(axes),
        check_vma=False,
    )(params, *trees)


def by_heads(fn: Callable, *trees):
    """`fn(*trees)` of arrays [P, H, ...] and [P], each device on its own part.

    For kernels, which the compiler cannot split. Axes of the mesh that do not divide
    prompts or heads compute the same.
    """
    if size() == 1:
        return fn(*trees)

    def spec(x):
        return partition(rules(), ("prompts", "heads")[: x.ndim], sizes(), x.shape)

    specs = jax.tree.map(spec, trees)
    return jax.shard_map(
        fn,
        in_specs=specs,
        out_specs=jax.tree.leaves(specs)[0],
        axis_names=set(sizes()),
        check_vma=False,
    )(*trees)


def by_rows(fn: Callable, params, x: jax.Array, *others: jax.Array | None):
    """`fn(params, x, *others)` of flat rows [rows, ...], each device on its own rows.

    Args:
      params: of a layer of experts, whole on each device, but for what `tensor` splits;
        along `dispatch_axes` each device has its own part of the experts' kernels.
    """
    axes = _axes_of_rows(len(x))
    if not axes:
        return fn(params, x, *others)
    experts = PartitionSpec(dispatch_axes(len(x)) or None)
    specs = jax.tree.map(lambda p: experts if p.ndim == 3 else PartitionSpec(), params)
    rows = PartitionSpec(axes)
    return jax.shard_map(
        fn,
        in_specs=(specs, rows, *(rows for _ in others)),
        out_specs=rows,
        axis_names=set(axes),
        check_vma=False,
    )(params, x, *others)


def dispatch_axes(num_rows: int) -> tuple[str, ...]:
    """Mesh axes along which each device computes its own experts, of so many rows."""
    return tuple(a for a in _axes_of_rows(num_rows) if a in rules().dispatch)


def _axes_of_rows(num_rows: int) -> tuple[str, ...]:
    """Mesh axes that split flat rows; none where they do not divide them."""
    there = sizes()
    axes = tuple(a for a in rules().rows if there.get(a, 1) > 1)
    return () if num_rows % size(*axes) else axes


def _stored(path, x) -> PartitionSpec:
    names = logical_axes(path, x.ndim)
    return partition(layout().update, names, sizes(), x.shape)


def _moved(x, stored: PartitionSpec, used: PartitionSpec):
    def move(x):
        # In two steps, or XLA gathers all of it: what nobody keeps split is gathered,
        # then the axes that stay change places.
        kept = {axis for entry in used for axis in axes_of(entry)}
        return _put(_put(x, _only(stored, kept)), used)

    moved = jax.custom_vjp(move)
    moved.defvjp(lambda x: (move(x), None), lambda _, grad: (_put(grad, stored),))
    return moved(x)


def _only(spec: PartitionSpec, axes: Collection[str]) -> PartitionSpec:
    return PartitionSpec(*(tuple(a for a in axes_of(e) if a in axes) for e in spec))


def _whole(x, spec: PartitionSpec):
    for i, entry in enumerate(spec):
        if axes_of(entry):
            x = jax.lax.all_gather(x, axes_of(entry), axis=i, tiled=True)
    return x
