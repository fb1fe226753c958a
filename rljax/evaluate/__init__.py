"""Held-out problems: asking a policy, estimates with errors, the report."""

from rljax.evaluate.ask import Evaluation, held_out
from rljax.evaluate.estimate import (
    Estimate,
    Stage,
    Table,
    compare,
    compare_by_group,
    pass_at_k,
    summary,
)

__all__ = [
    "Estimate",
    "Evaluation",
    "Stage",
    "Table",
    "compare",
    "compare_by_group",
    "held_out",
    "pass_at_k",
    "summary",
]
