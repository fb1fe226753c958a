"""What is to be solved, and how it is judged.

A `Task` holds problems and a verifier; it is made by `addition.task` or, from files, by
`problems.task`. A new task is a file here, or a function in your experiment. Nothing
here knows a policy's parameters, an algorithm or a run.
"""

from rljax.task import addition, problems
from rljax.task.base import Task

__all__ = ["Task", "addition", "problems"]
