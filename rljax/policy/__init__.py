"""Policies: pure functions over a parameter pytree; flax stays inside."""

from rljax.policy.base import Policy
from rljax.policy.decoder import decoder_policy
from rljax.policy.divergence import against_reference
from rljax.policy.privileged import privileged_teacher
from rljax.policy.transformer import DecoderConfig
from rljax.policy.value_head import with_value_head

__all__ = [
    "DecoderConfig",
    "Policy",
    "against_reference",
    "decoder_policy",
    "privileged_teacher",
    "with_value_head",
]
