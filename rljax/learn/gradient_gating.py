"""Dynamic gradient gating (DGG): when to stop reusing a rollout batch.

Any algorithm may stand under the gate; the paper's is GRPO with the clipped ratio, and
`num_passes=4` of the learner.
"""

from collections.abc import Callable
from typing import Any

from rljax.learn.gate import Gate, gradient_gate


def output_projection(grads) -> Any:
    """A decoder's gradient at its output projection; if tied, at the embedding."""
    return grads["head"] if "head" in grads else grads["embed"]


def dgg_gate(
    *,
    threshold: float = 0.5,
    window: int = 20,
    select_fn: Callable[[Any], Any] = output_projection,
) -> Gate:
    """Drops the gradient and ends the reuse when the projection's energy jumps.

    Args:
      threshold: standard deviations above the mean increment; 0.1, 0.5 or 1.
      window: increments.
      select_fn: gradients -> the output projection's; with a value head
        `lambda grads: output_projection(grads["policy"])`.

    Source: arXiv:2605.19425 (rule SECONDARY, window RECONSTRUCTED).
    """
    return gradient_gate(select_fn, threshold=threshold, window=window)
