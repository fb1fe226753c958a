"""The optimiser and the learning rates of the experiments."""

import optax


def adamw(rate: optax.Schedule, gradient_clip: float) -> optax.GradientTransformation:
    """AdamW without decay; b2 is short, as runs are of some hundred steps."""
    return optax.chain(
        optax.clip_by_global_norm(gradient_clip),
        optax.adamw(rate, b2=0.99, weight_decay=0.0),
    )


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
