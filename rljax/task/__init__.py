"""Tasks: problems, and how their solutions are judged.

A `Task` holds problems and a verifier. `addition.task` and `arithmetic.task` make one;
`problems.split` makes one from your own problems. Add a task as a file here, or as a
function in your experiment. Nothing here knows a policy's parameters, an algorithm or a
run.
"""

from rljax.task import addition, problems
from rljax.task.base import Task

__all__ = ["Task", "addition", "problems"]
