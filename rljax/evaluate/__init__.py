"""Held-out problems: asking a policy, estimates with errors, the report."""

from rljax.evaluate.estimate import (
    Estimate,
    Stage,
    Table,
    accuracy,
    compare,
    compare_by_group,
    pass_at_k,
    summary,
)

__all__ = [
    "Estimate",
    "Stage",
    "Table",
    "accuracy",
    "compare",
    "compare_by_group",
    "pass_at_k",
    "summary",
]
