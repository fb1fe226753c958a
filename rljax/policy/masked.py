"""A teacher whose smallest weights are set to 0, which makes it easier to imitate.

The share of masked weights falls in steps, so that the teacher grows back to its full
size while the student learns.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check
from rljax.policy.base import Policy
from rljax.policy.frozen import joined
from rljax.types import Prompts, Samples, TokenStats, TrainState


def masked(params: Any, share: jax.typing.ArrayLike) -> Any:
    """Weights below the `share`-quantile of their matrix's magnitudes become 0.

    w -> w if |w| >= q_share(|w|) else 0, with a threshold for each matrix of each
    layer, as a common one would empty some layers. Vectors (norms, biases) stay.

    Args:
      params: a tree; the last two axes of a leaf are a matrix, leading ones are layers.
      share: fraction of a matrix's weights, in [0, 1]; may be traced.

    Source: Masters (CVPR 2026; SECONDARY); the quantile interpolates linearly
      (RECONSTRUCTED).
    """
    check.number("share", share, low=0, high=1)

    def mask(path, w):
        if w.ndim < 2 or path[-1].key not in ("kernel", "embedding"):
            return w
        size = jnp.abs(w.astype(jnp.float32))
        flat = size.reshape(*w.shape[:-2], -1)
        least = jnp.quantile(flat, share, axis=-1)[..., None, None]
        return jnp.where(size >= least, w, jnp.zeros_like(w))

    return jax.tree.map_with_path(mask, params)


def staircase(num_steps: int, *, first: float = 0.2, stair: float = 0.05) -> Callable:
    """step -> share: from `first` down to 0 in stairs of equal length.

    share = first - stair * floor(step * M / num_steps),  M = first / stair + 1

    Args:
      num_steps: training steps of all stairs together; after them the share is 0.
      first: share that is masked at the start, in [0, 1].
      stair: decrease of the share from stair to stair, above 0; divides `first`.

    Source: Masters (SECONDARY): .2 and .05.
    """
    check.count("num_steps", num_steps)
    check.number("first", first, low=0, high=1)
    check.number("stair", stair, above=0)
    down = round(first / stair)
    if abs(first - down * stair) > 1e-6:
        raise ValueError(
            f"stair must divide first, got {stair} and {first}; change one, so that the"
            " last stair is 0."
        )

    def share(step):
        # Integers, as a product of floats may fall just below the edge of a stair.
        done = jnp.minimum(step * (down + 1) // num_steps, down)
        return stair * (down - done).astype(jnp.float32)

    return share


def masked_teacher(
    policy: Policy, share_fn: Callable[[jax.Array], jax.Array]
) -> Callable[[TrainState, Prompts, Samples], TokenStats]:
    """A teacher for `program.actor`: the reference policy with masked weights.

    `TrainState.reference` holds the teacher's unmasked parameters.

    Args:
      policy: measures the tokens.
      share_fn: training step i32[] -> share of masked weights, such as `staircase`.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.function("share_fn", share_fn, "step")

    def teacher(state, prompts, samples):
        if state.reference is None:
            raise ValueError(
                "a masked teacher needs parameters, got None; start the run with the"
                " teacher's in TrainState.reference."
            )
        whole = joined(state.reference, state.frozen)
        return policy.measure(masked(whole, share_fn(state.step)), prompts, samples)

    return teacher
