"""The interface of policies, and what is measured of any of them.

    base        `Policy`: pure functions over a tree of parameters
    score       log-probability and entropy, chunk by chunk
    divergence  exact divergences from a reference policy
    value_head  a critic on top
    teacher     a policy that is told more

A transform of policies belongs here; no network does, and nothing here imports flax.
"""

from rljax.policy.base import Policy
from rljax.policy.divergence import against_reference
from rljax.policy.teacher import privileged_teacher
from rljax.policy.value_head import with_value_head

__all__ = [
    "Policy",
    "against_reference",
    "privileged_teacher",
    "with_value_head",
]
