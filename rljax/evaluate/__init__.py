"""Evaluation on held-out problems.

ask       samples answers of a policy and verifies them
estimate  accuracies with errors, and tables that compare them
report    a run's report as an HTML file
before    the test of the policy before a run's last stage
kept      the policies that a run folder keeps
farewell  what a run prints when it ends

Another way to judge is an `Evaluation` of your own, given to the `Experiment`. Nothing
here knows algorithms, learners or how a policy was trained.
"""

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
