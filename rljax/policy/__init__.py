"""The interface of policies, and what is measured of any of them.

Pure functions over a parameter pytree. A transform of policies (a head, a reference, a
teacher) belongs here; no network does, and nothing here imports flax.
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
