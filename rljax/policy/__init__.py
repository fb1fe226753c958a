"""The interface of policies, measurements of any policy, and transforms of policies.

    base          `Policy`: pure functions over a tree of parameters
    score         log-probability and entropy, chunk by chunk
    returned      what samplers and measure functions return is checked
    divergence    exact divergences from a reference policy
    value_head    a critic on top of a policy
    teacher       the policy itself with a more informative prompt, as a teacher
    frozen        split parameters into trained and frozen ones, and join them
    lora          low-rank adapters beside frozen matrices
    quantised     int8 weights for rollouts
    masked        a teacher without its smallest weights
    soup          averages of parameters
    key_elements  a penalty on what earlier tasks changed most
    rate          learning rates by name and layer

Transforms of policies belong here, networks do not. Nothing here imports flax.
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
