"""The interface of policies, what is measured of any of them, and their transforms.

    base          `Policy`: pure functions over a tree of parameters
    score         log-probability and entropy, chunk by chunk
    returned      what samplers and measure functions return is checked
    divergence    exact divergences from a reference policy
    value_head    a critic on top
    teacher       a policy that is told more
    frozen        trained and frozen parameters, apart and together
    lora          thin adapters beside frozen matrices
    quantised     int8 weights for rollouts
    masked        a teacher without its smallest weights
    soup          averages of parameters
    key_elements  what earlier tasks moved most, and a penalty on it
    rate          learning rates by name and layer

A transform of policies belongs here; no network does, and nothing here imports flax.
"""

from rljax.policy.base import Policy
from rljax.policy.divergence import against_reference
from rljax.policy.lora import Lora
from rljax.policy.masked import masked_teacher
from rljax.policy.quantised import int8_decoding
from rljax.policy.soup import soup
from rljax.policy.teacher import privileged_teacher
from rljax.policy.value_head import with_value_head

__all__ = [
    "Lora",
    "Policy",
    "against_reference",
    "int8_decoding",
    "masked_teacher",
    "privileged_teacher",
    "soup",
    "with_value_head",
]
