"""The optimisers and the learning rates of the experiments.

optax and the other dependencies have no optimiser with 8-bit states; `adafactor` holds
less than that would: its second moment is a row and a column per matrix.
"""

import jax
import jax.numpy as jnp
import optax


def adamw(
    rate: optax.Schedule,
    gradient_clip: float,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
    """AdamW without decay; b2 is short, as runs are of some hundred steps.

    Args:
      mu_dtype: of the first moment; None is that of the parameters it moves.
    """
    return optax.chain(
        optax.clip_by_global_norm(gradient_clip),
        optax.adamw(rate, b2=0.99, weight_decay=0.0, mu_dtype=mu_dtype),
    )


def adafactor(
    rate: optax.Schedule,
    gradient_clip: float,
    mu_dtype: jax.typing.DTypeLike = jnp.float32,
) -> optax.GradientTransformation:
    """Adam whose second moment of a matrix is the product of a row and a column.

    The rate is absolute, as AdamW's, not a share of each parameter's size.

    Source: Shazeer and Stern, arXiv:1804.04235.
    """
    return optax.chain(
        optax.clip_by_global_norm(gradient_clip),
        optax.adafactor(
            rate,
            multiply_by_parameter_scale=False,
            momentum=0.9,
            dtype_momentum=mu_dtype,
        ),
    )


BY_NAME = {"adamw": adamw, "adafactor": adafactor}


def linear_decay(peak: float, num_steps: int) -> optax.Schedule:
    """10 optimiser steps of warm-up, then a linear decay to 10 %."""
    warmup = min(10, num_steps // 2)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, 0.1 * peak, num_steps - warmup),
        ],
        [warmup],
    )


def cosine_decay(peak: float, num_steps: int) -> optax.Schedule:
    """30 optimiser steps of warm-up, then a cosine to 5 %."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, min(30, num_steps // 2), num_steps, 0.05 * peak
    )
