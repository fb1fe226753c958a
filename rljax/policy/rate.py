"""Rates by name and by layer, and penalties of parameters, as optax transformations.

Parameters that are not to move at all need no rate of 0, which would keep their
gradients and moments: `Experiment.trains` leaves them out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax import check


def layer_decay(num_layers: int, decay: float) -> list[float]:
    """Rates decay^(L - 1 - l) of layers l: 1 for the last one, less towards the input.

    Args:
      num_layers: L.
      decay: from a layer to the one below it, in (0, 1].
    """
    check.count("num_layers", num_layers)
    check.number("decay", decay, above=0, high=1)
    return [decay ** (num_layers - 1 - layer) for layer in range(num_layers)]


def scale_by_layer(rates: Sequence[float]) -> optax.GradientTransformation:
    """Multiplies the updates of layer l by `rates[l]`; others stay as they are.

    Layers lie along axis 0 of the leaves below the name `layers`, adapters too. Place
    it after what normalises: Adam undoes a scale before it.

    Args:
      rates: a factor of each layer, at least 0.

    Raises:
      ValueError: when traced, if there are not as many rates as layers.
    """
    if not isinstance(rates, Sequence) or isinstance(rates, str):
        check.refuse("rates", "be a list of numbers, one of each layer", rates)
    for rate in rates:
        check.number("rates", rate, low=0)
    factors = jnp.asarray(rates, jnp.float32)

    def scale(path, update):
        if "layers" not in names(path):
            return update
        if update.shape[0] != factors.size:
            raise ValueError(
                f"rates must be one of each of the {update.shape[0]} layers, got"
                f" {factors.size}; layer_decay(num_layers, decay) makes them."
            )
        shape = (-1,) + (1,) * (update.ndim - 1)
        return update * factors.reshape(shape).astype(update.dtype)

    return optax.stateless(
        lambda updates, params: jax.tree.map_with_path(scale, updates)
    )


def scale_by_name(
    rate_fn: Callable[[tuple[str, ...]], float],
) -> optax.GradientTransformation:
    """Multiplies the update of each leaf by `rate_fn(names from the root to it)`."""
    check.function("rate_fn", rate_fn, "names")
    return optax.stateless(
        lambda updates, params: jax.tree.map_with_path(
            lambda path, update: rate_fn(names(path)) * update, updates
        )
    )


def add_gradient_of(penalty_fn: Callable[[Any], jax.Array]):
    """Adds the gradient of a penalty of the parameters; first in a chain.

    Args:
      penalty_fn: params -> f32[], differentiable; its coefficient is part of it.

    Returns:
      A stateless optax transformation that needs the parameters.
    """
    check.function("penalty_fn", penalty_fn, "params")

    def update(updates, params):
        return jax.tree.map(jnp.add, updates, jax.grad(penalty_fn)(params))

    return optax.stateless(update)


def names(path: Any) -> tuple[str, ...]:
    """The names of a path of `jax.tree_util`, from the root to the leaf."""
    return tuple(entry.key for entry in path)
