"""Loss functions: `(now, credit, rollout) -> f32[P, G, T]`, minimised, per token."""

from rljax.loss.kl import entropy_bonus, kl_k1, kl_k2, kl_k3, kl_k3_straight
from rljax.loss.surrogate import clipped_ratio, nll, reinforce

__all__ = [
    "clipped_ratio",
    "entropy_bonus",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_k3_straight",
    "nll",
    "reinforce",
]
