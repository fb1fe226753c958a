"""Sharding constraints for traced code; without a mesh each one is the identity.

XLA partitions the program by itself (automatic axes); constraints tell it in a few
places how an array is sharded. A constraint leaves the axes that it does not name
unconstrained, because None would mean "replicated". `by_prompts`, `by_heads` and
`by_rows` use `shard_map` where XLA's own choice is bad or impossible.
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

# (layout, whether sampling), or None; jit's cache keys include it.
_context = jax.make_user_context(default_value=None)
_put = jax.lax.with_sharding_constraint


@contextlib.contextmanager
def using(mesh: Mesh | None, layout: Layout = PLAIN) -> Iterator[None]:
    """`with using(mesh):` sets the mesh and the layout; None changes nothing."""
    if mesh is None:
        yield
        return
    with jax.set_mesh(mesh), _context((layout, False)):
        yield


def alone() -> contextlib.AbstractContextManager:
    """`with alone():` runs on one device of this process, without other processes."""
    if processes.count() == 1:
        return contextlib.nullcontext()
    return using(devices.make(jax.local_devices()[:1]))


@contextlib.contextmanager
def sampling() -> Iterator[None]:
    """`with sampling():` makes traced code follow the rules of `Layout.sample`."""
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
    """Mesh axis -> devices along it, for the axes that XLA partitions by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {a: n for a, n in mesh.shape.items() if a not in mesh.manual_axes}


def size(*axes: str) -> int:
    """Devices along the named mesh axes, or along all axes; 1 without a mesh."""
    found = sizes()
    return math.prod(found.get(axis, 1) for axis in axes or found)


def parts(name: str) -> int:
    """The number of parts that the rules in use split a logical axis into."""
    return size(*getattr(rules(), name))


def keep(x: jax.Array, *names) -> jax.Array:
    """Constrains the sharding of `x` as the rules in use say.

    Args:
      x: an array.
      *names: for each of its first axes, a field of `Rules`, None for replicated, or
        FREE for unconstrained. Further axes are unconstrained.
    """
    if size() == 1:
        return x
    free = (FREE,) * (x.ndim - len(names))
    return _put(x, partition(rules(), (*names, *free), sizes()))


def constrain(tree):
    """Constrains the first axis, P, of every array; scalars stay as they are."""
    if size() == 1:
        return tree
    return jax.tree.map(lambda x: keep(x, "prompts") if jnp.ndim(x) else x, tree)


def keep_state(tree):
    """Constrains parameters, and trees of the same paths, to their stored sharding."""
    if size() == 1:
        return tree
    return jax.tree.map_with_path(lambda path, x: _put(x, _stored(path, x)), tree)


def gather(params, dtype: Any = None):
    """Gathers parameters for products: whole along `embed`, split as the rules say.

    Gradients get the stored sharding of the parameters. (The transpose of a plain
    sharding constraint is the same constraint, which would leave whole gradients on
    every device.)

    Args:
      params: of the decoder, or of one layer.
      dtype: to cast gathered parameters to first, as the products would; None: no cast.
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
    """A policy for `jax.checkpoint`: saves everything but outputs of constraints.

    Without it, the gathered weights of all layers would be kept for the backward pass.
    """
    return primitive.name != "sharding_constraint"


def by_prompts(fn: Callable, params, *trees):
    """`fn(params, *trees)` of trees [P, ...], each device on its own prompts.

    For the embedding and the output head. The parameters are gathered first; each
    device sums their gradients over its own rows, and the sums are scattered once. XLA
    alone would scatter in each iteration of a loop, because a loop cannot carry partial
    sums of devices. For the embedding's gradient it would gather activations.
    """
    axes = _split_by(rules().prompts)
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

    For kernels, which XLA cannot partition. Along mesh axes that do not divide prompts
    or heads, all devices compute the same.
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
      fn: of one device.
      params: of a mixture of experts. Along `dispatch_axes`, each device gets its own
        experts' kernels; along the other axes of rows, the parameters are replicated.
      x, *others: [rows, ...].
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
    """Mesh axes along which each device applies its own experts to all rows."""
    return tuple(a for a in _axes_of_rows(num_rows) if a in rules().dispatch)


def _axes_of_rows(num_rows: int) -> tuple[str, ...]:
    """Mesh axes that split flat rows; () if they do not divide the rows."""
    axes = _split_by(rules().rows)
    return () if num_rows % size(*axes) else axes


def _split_by(axes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the mesh axes that have more than one device."""
    found = sizes()
    return tuple(a for a in axes if found.get(a, 1) > 1)


def _stored(path, x) -> PartitionSpec:
    """The stored sharding of a parameter, or of a leaf with the same path."""
    names = logical_axes(path, x.ndim)
    return partition(layout().update, names, sizes(), x.shape)


def _moved(x, stored: PartitionSpec, used: PartitionSpec):
    """`x` resharded from `stored` to `used`; its gradient gets `stored` back."""

    def move(x):
        # In one step XLA would gather along every axis. So first gather along the axes
        # that `used` does not have, then move the others to their new places.
        kept = {axis for entry in used for axis in axes_of(entry)}
        return _put(_put(x, _only(stored, kept)), used)

    moved = jax.custom_vjp(move)
    moved.defvjp(lambda x: (move(x), None), lambda _, grad: (_put(grad, stored),))
    return moved(x)


def _only(spec: PartitionSpec, axes: Collection[str]) -> PartitionSpec:
    """The spec restricted to some mesh axes."""
    return PartitionSpec(*(tuple(a for a in axes_of(e) if a in axes) for e in spec))


def _whole(x, spec: PartitionSpec):
    """Gathers a shard along all axes of `spec`, inside `shard_map`."""
    for i, entry in enumerate(spec):
        if axes_of(entry):
            x = jax.lax.all_gather(x, axes_of(entry), axis=i, tiled=True)
    return x
