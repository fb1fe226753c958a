"""Policies: pure functions over a parameter pytree; flax stays inside."""

from rljax.policy.base import Policy
from rljax.policy.decoder import DecoderConfig, decoder_policy

__all__ = ["DecoderConfig", "Policy", "decoder_policy"]
