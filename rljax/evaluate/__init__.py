"""Held-out problems: asking a policy, estimates with errors, the report.

    ask       `held_out` makes an `Evaluation`: functions that change nothing
    estimate  pass@k with its error, and tables that compare the stages of a run
    report    the page of a run
    before    the test of the policy that the last stage begins with
    kept      the policies of a run folder: the last and the best one
    farewell  what a run says when it ends

Another way to judge is an `Evaluation` of your own, given to the `Experiment`. Nothing
here knows an algorithm, a learner or how a policy was trained.
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
