"""What a run prints when it ends: completions, tables, and the paths of its results."""

import pathlib
from collections.abc import Sequence

import rich.console

from rljax.evaluate import kept
from rljax.evaluate.estimate import Table
from rljax.evaluate.report import Completion
from rljax.run import shown


def show(
    folder: pathlib.Path,
    tables: Sequence[Table],
    completions: Sequence[Completion],
    report_path: pathlib.Path | str,
) -> None:
    """Prints the tables and some completions with their verdicts.

    Args:
      folder: the run folder.
      report_path: path of the report, or why there is none.
    """
    console = rich.console.Console(highlight=False)
    for sample in completions[:6]:
        console.print(shown.completion(sample.record()), markup=False)
    for table in tables:
        console.print(f"\n{table}", markup=False)
    best = kept.facts_of(folder, kept.BEST)
    if best is not None:
        best = f"{folder / kept.BEST}, after step {best['step']}"
    console.print(
        f"\nrun folder: {folder} (config, metrics, completions, tensorboard,"
        " checkpoints)"
        f"\npolicy, a Hugging Face folder: {folder / kept.LAST}"
        f"\nthe best on validation: {best}\nreport: {report_path}",
        markup=False,
    )
