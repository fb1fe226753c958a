"""The optimisers and learning-rate schedules of the experiments.

No dependency has an optimiser with 8-bit state. `adafactor` needs even less memory: its
second moment is one row and one column per matrix.
"""

import jax
import jax.numpy as jnp
import optax


def adamw(
    rate: optax.Schedule,
    gradient_clip: float,
    mu_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformation:
    """AdamW without weight decay; b2 is 0.99, because runs have a few hundred steps.

    Args:
      rate: learning rate by optimiser step.
      gradient_clip: maximum global norm of a gradient.
      mu_dtype: of the first moment; None: that of the parameters.
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
    """Adam with a factored second moment: the product of a row and a column per matrix.

    The learning rate is absolute, as in AdamW, not relative to each parameter's scale.

    Args:
      rate: learning rate by optimiser step.
      gradient_clip: maximum global norm of a gradient.
      mu_dtype: of the first moment.

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
    """Warm-up over 10 optimiser steps, then linear decay to 10 % of the peak."""
    warmup = min(10, num_steps // 2)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, 0.1 * peak, num_steps - warmup),
        ],
        [warmup],
    )


def cosine_decay(peak: float, num_steps: int) -> optax.Schedule:
    """Warm-up over 30 optimiser steps, then cosine decay to 5 % of the peak."""
    return optax.warmup_cosine_decay_schedule(
        0.0, peak, min(30, num_steps // 2), num_steps, 0.05 * peak
    )
