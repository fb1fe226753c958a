"""Learning rates by name and by layer, and parameter penalties, for optax.

To freeze parameters use `Experiment.trains`: a rate of 0 would still cost gradients and
moments.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rljax import check


def layer_decay(num_layers: int, decay: float) -> list[float]:
    """Rates decay^(L - 1 - l) for layers l: 1 for the last, smaller towards the input.

    Args:
      num_layers: L.
      decay: factor from a layer to the one before it, in (0, 1].
    """
    check.count("num_layers", num_layers)
    check.number("decay", decay, above=0, high=1)
    return [decay ** (num_layers - 1 - layer) for layer in range(num_layers)]


def scale_by_layer(rates: Sequence[float]) -> optax.GradientTransformation:
    """Multiplies the updates of layer l by `rates[l]`; other updates are unchanged.

    Layers lie along axis 0 of the leaves below the name `layers`, adapters included.
    Place it after Adam and the like, which would undo a scale before them.

    Args:
      rates: one factor per layer, at least 0.

    Raises:
      ValueError: when traced, if there are not as many rates as layers.
    """
    if not isinstance(rates, Sequence) or isinstance(rates, str):
        check.refuse("rates", "be a list of numbers, one per layer", rates)
    for rate in rates:
        check.number("rates", rate, low=0)
    factors = jnp.asarray(rates, jnp.float32)

    def scale(path, update):
        if "layers" not in names(path):
            return update
        if update.shape[0] != factors.size:
            raise ValueError(
                f"rates must be one number for each of the {update.shape[0]} layers,"
                f" got {factors.size}; layer_decay(num_layers, decay) makes them."
            )
        shape = (-1,) + (1,) * (update.ndim - 1)
        return update * factors.reshape(shape).astype(update.dtype)

    return optax.stateless(
        lambda updates, params: jax.tree.map_with_path(scale, updates)
    )


def scale_by_name(
    rate_fn: Callable[[tuple[str, ...]], float],
) -> optax.GradientTransformation:
    """Multiplies each leaf's update by `rate_fn(names from the root to the leaf)`."""
    check.function("rate_fn", rate_fn, "names")
    return optax.stateless(
        lambda updates, params: jax.tree.map_with_path(
            lambda path, update: rate_fn(names(path)) * update, updates
        )
    )


def add_gradient_of(penalty_fn: Callable[[Any], jax.Array]):
    """Adds the gradient of a penalty on the parameters; place it first in a chain.

    Args:
      penalty_fn: params -> f32[], differentiable, with its coefficient.

    Returns:
      A stateless optax transformation whose `update` needs the parameters.
    """
    check.function("penalty_fn", penalty_fn, "params")

    def update(updates, params):
        return jax.tree.map(jnp.add, updates, jax.grad(penalty_fn)(params))

    return optax.stateless(update)


def names(path: Any) -> tuple[str, ...]:
    """The names in a `jax.tree_util` key path, from the root to the leaf."""
    return tuple(entry.key for entry in path)
