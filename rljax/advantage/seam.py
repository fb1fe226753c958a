"""Checks of what users' transforms and loss functions return.

An array that lacks an axis broadcasts. If P = G or G = T, this raises no error, and the
run silently trains on another objective. So every result must have the shapes and
dtypes of its type. If some of P, G and T are equal, the function is also traced with
sizes that differ. The checks run at trace time and cost nothing at run time.
"""

import contextlib
import itertools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from rljax import metric
from rljax.layout import over_tokens
from rljax.types import Credit, Rollout

Sizes = tuple[int, int, int]


class BrokenLaw(ValueError):
    """A transform or loss function returned what its type does not allow.

    place: which function it is: term, chain and link.
    what: what it must return, what it returned, what to do.
    """

    def __init__(self, place: str, what: str):
        super().__init__(f"{place} {what}")
        self.place, self.what = place, what


def transformed(transform, credit: Credit, rollout: Rollout, state, place: str):
    """(credit, state) of the transform's update, checked.

    Args:
      place: where the transform stands, for the message.

    Raises:
      BrokenLaw: when traced, if the result is no (credit, state) with the right shapes
        and dtypes, for these sizes of P, G and T or for unequal ones.
    """
    place = f"{place} ({name_of(transform.update)})"

    def require(result, sizes):
        new, after = _pair(result, place)
        _require_credit(new, sizes, place)
        _require_state(state, after, place)

    return _called(transform.update, (credit, rollout, state), require, place)


def loss_of(loss_fn, now, credit: Credit, rollout: Rollout, place: str) -> jax.Array:
    """The loss function's value, checked: f32[P, G, T], or [P, G, 1] for whole rows."""
    place = f"{place}, loss function ({name_of(loss_fn)})"

    def require(value, sizes):
        _require(place, "a loss", value, jnp.float32, "[P, G, T] or [P, G, 1]", sizes)

    return _called(loss_fn, (now, credit, rollout), require, place)


def name_of(fn) -> str:
    """The name of the factory that made a function, or else the function's own."""
    name = getattr(fn, "__qualname__", type(fn).__name__)
    return name.split(".<locals>")[0].removeprefix("_")


def _called(fn: Callable, args: tuple, require: Callable, place: str):
    rollout = next(x for x in args if isinstance(x, Rollout))
    P, G, T = rollout.samples.mask.shape
    sizes = (P, G, T)
    with _watching(place):
        result = fn(*args)
    require(result, sizes)
    if unequal(sizes) != sizes:
        other = unequal(sizes, _fixed(fn, args))
        with _watching(place):
            probe = jax.eval_shape(fn, *_resized(args, sizes, other))
        require(probe, other)
    return result


def _fixed(fn, args) -> set[int]:
    """Sizes that occur in the function's constants and state and so must not change."""
    arrays = jax.make_jaxpr(fn)(*args).consts
    if isinstance(args[0], Credit):  # (credit, rollout, state)
        arrays = [*arrays, *jax.tree.leaves(args[2])]
    return {size for x in arrays for size in jnp.shape(x)}


def unequal(sizes: Sizes, fixed: Collection[int] = ()) -> Sizes:
    """Sizes for P and T such that P, G and T all differ; G stays.

    The new sizes are multiples of the old ones, so that P still divides by the devices
    it is sharded over. Sizes of 1 and those in `fixed` stay as well.

    >>> unequal((4, 4, 4))
    (12, 4, 8)
    """

    def apart(size, *others):
        if size == 1 or size in fixed:
            return size
        return next(size * i for i in itertools.count(1) if size * i not in others)

    P, G, T = sizes
    T = apart(T, G, P)
    return apart(P, G, T), G, T


def _resized(args, old: Sizes, new: Sizes):
    """The arguments' shapes for a rollout of the new sizes."""

    def tokens(x) -> Any:
        shape = (*x.shape[:2], new[2], *x.shape[3:])
        return jax.ShapeDtypeStruct(shape, x.dtype)

    def answers(x):  # stored answers have T tokens, as completions do
        if x.ndim > 1 and x.shape[-1] == old[2]:
            return jax.ShapeDtypeStruct((*x.shape[:-1], new[2]), x.dtype)
        return x

    def prompts(x):
        # All arrays begin with [P, ...], except a credit's metrics, which are scalars.
        return jax.ShapeDtypeStruct((new[0], *x.shape[1:]) if x.shape else (), x.dtype)

    def resized(x):
        if isinstance(x, Rollout):
            data = jax.tree.map(answers, x.prompts.data)
            x = x.replace(prompts=x.prompts.replace(data=data))
        return jax.tree.map(prompts, over_tokens(tokens, x))

    first, second, third = args
    stateful = isinstance(first, Credit)  # (credit, rollout, state), else (now, ...)
    return resized(first), resized(second), third if stateful else resized(third)


@contextlib.contextmanager
def _watching(place: str):
    try:
        yield
    except BrokenLaw as error:  # from a nested chain: prepend this place
        raise BrokenLaw(f"{place}, {error.place}", error.what) from error.__cause__
    except (TypeError, ValueError) as error:
        if "broadcast" not in str(error):
            raise
        raise BrokenLaw(
            place,
            "must combine arrays of [P, G, 1] and [P, G, T], or scalars, got:"
            f" {error} Keep all axes, by keepdims=True or [..., None].",
        ) from error


def _pair(result, place):
    if not isinstance(result, tuple) or len(result) != 2:
        _refuse(place, "a pair (credit, state)", _shown(result))
    if not isinstance(result[0], Credit):
        _refuse(place, "a pair (credit, state)", f"({_shown(result[0])}, ...)")
    return result


def _require_credit(credit, sizes, place):
    either = "[P, G, 1] or [P, G, T]"
    _require(place, "an advantage", credit.advantage, jnp.float32, either, sizes)
    _require(place, "a weight", credit.weight, jnp.float32, "[P, G, T]", sizes)
    _require(place, "a member", credit.member, jnp.bool_, "[P, G, 1]", sizes)
    for name, value in metric.numbers(credit.metrics).items():
        _require(place, f"a metric {name!r}", value, jnp.float32, "[]", sizes)


def _require(place, what, value, dtype, layouts, sizes):
    letters = dict(zip("PGT", sizes, strict=True)) | {"1": 1}
    shapes = [
        tuple(letters[c] for c in layout if c in letters)
        for layout in layouts.split(" or ")
    ]
    if getattr(value, "shape", None) in shapes and value.dtype == dtype:
        return
    wanted = " or ".join(map(str, shapes))
    _refuse(
        place, f"{what} {jnp.dtype(dtype).name}{layouts}, shape {wanted}", _shown(value)
    )


def _require_state(before, after, place):
    wanted, got = _types(before), _types(after)
    if jax.tree.structure(before) != jax.tree.structure(after) or wanted != got:
        _refuse(place, f"a state of its init()'s type, {wanted}", f"{got}")


def _refuse(place, wanted, got):
    raise BrokenLaw(
        place, f"must return {wanted}, got {got}; keep all axes, dtypes and fields."
    )


def _shown(x) -> str:
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{jnp.dtype(x.dtype).name} of shape {tuple(x.shape)}"
    return f"{type(x).__name__} {x!r}"[:80]


def _types(state):
    return [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in jax.tree.leaves(state)]
