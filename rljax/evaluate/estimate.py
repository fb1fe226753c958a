"""Held-out accuracy with its standard error, and tables that compare stages of a run.

Everything here is NumPy on the host. Symbols: `P` problems, `n` samples per problem,
`c` of them correct, `k` tries.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over problems and its standard error, both fractions.

    The error is that of the choice of problems; for a single problem it is NaN.
    """

    mean: float
    error: float

    def __str__(self) -> str:
        error = "?" if np.isnan(self.error) else f"{100 * self.error:.1f}"
        return f"{100 * self.mean:.1f} ± {error}"


class Stage(NamedTuple):
    """The verdicts on one policy's answers to the held-out problems.

    correct: bool[P, n] for sampled completions.
    greedy: bool[P] for greedy completions, or None if there are none.
    """

    correct: np.ndarray
    greedy: np.ndarray | None = None


class Table(NamedTuple):
    """A table of strings; `str(table)` aligns it for a terminal."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __str__(self) -> str:
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join(part for part in (self.title, *text, self.note) if part)


def pass_at_k(correct: np.ndarray, k: int) -> Estimate:
    """Probability that at least one of `k` tries is correct.

    For each problem this is the unbiased estimate from n >= k samples,
    1 - C(n - c, k) / C(n, k).

    Args:
      correct: bool[P, n].
      k: number of tries, in [1, n].

    Raises:
      ValueError: if `correct` has another rank or dtype or is empty, or if k is not in
        [1, n].

    Source: Chen et al., Evaluating Large Language Models Trained on Code,
      arXiv:2107.03374, eq. (1).
    """
    return _over_problems(_by_problem(correct, k))


def summary(correct: np.ndarray, ks: Sequence[int] = (1, 8)) -> dict[str, float]:
    """Metrics of an evaluation: `pass@k` and `pass@k_error` by name, fractions.

    Args:
      correct: bool[P, n].
      ks: numbers of tries, each in [1, n].
    """
    values = {}
    for k in ks:
        values[f"pass@{k}"], values[f"pass@{k}_error"] = pass_at_k(correct, k)
    return values


def compare(stages: Mapping[str, Stage], ks: Sequence[int] = (1, 8)) -> Table:
    """A table of stages: a row for each pass@k, and one for greedy decoding.

    With two or more stages the last column is the change from the first to the last.
    The error of the change is that of the per-problem difference, so both stages must
    use the same problems in the same order. It is usually smaller than either stage's
    error.

    Raises:
      ValueError: without stages, or if they have different numbers of problems.
    """
    _check_stages(stages)
    rates = {
        f"pass@{k}": [_by_problem(s.correct, k) for s in stages.values()] for k in ks
    }
    greedy = [stage.greedy for stage in stages.values()]
    if all(g is not None for g in greedy):
        rates["greedy"] = [_by_problem(np.asarray(g)[:, None], 1) for g in greedy]
    changes = len(stages) > 1
    rows = []
    for name, columns in rates.items():
        cells = [str(_over_problems(rate)) for rate in columns]
        if changes:
            change = _over_problems(columns[-1] - columns[0])
            cells.append(("+" if change.mean >= 0 else "") + str(change))
        rows.append((name, *cells))
    shape = next(iter(stages.values())).correct.shape
    return Table(
        "Held-out accuracy (%)",
        ("", *stages, *(["change"] if changes else [])),
        tuple(rows),
        f"± standard error over {shape[0]} problems, {shape[1]} samples each.",
    )


def compare_by_group(
    stages: Mapping[str, Stage], group: np.ndarray, label: str
) -> Table:
    """A table of pass@1 of each stage for each group of problems.

    Args:
      group: [P], the group of each problem, such as its number of carries.
      label: what the groups are; the heading of their column.

    Raises:
      ValueError: without stages, or if they have another number of problems than
        `group`.
    """
    _check_stages(stages, len(group))
    rates = [_by_problem(stage.correct, 1) for stage in stages.values()]
    rows = [
        (
            str(value),
            str(np.sum(group == value)),
            *(str(_over_problems(rate[group == value])) for rate in rates),
        )
        for value in np.unique(group)
    ]
    return Table(
        f"Held-out pass@1 (%) by {label}", (label, "problems", *stages), tuple(rows)
    )


def _by_problem(correct: np.ndarray, k: int) -> np.ndarray:
    """f64[P]: each problem's estimate of pass@k."""
    correct = np.asarray(correct)
    if correct.ndim != 2 or correct.dtype != bool or not correct.size:
        raise ValueError(
            f"correct must be bool[P, n] with P, n >= 1, got {correct.dtype}"
            f"{list(correct.shape)}; pass verdicts, one row per problem."
        )
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(
            f"k must be in [1, {n}], the samples per problem, got {k}; draw more"
            " samples or ask for a smaller k."
        )
    wrong = n - correct.sum(axis=1)
    # C(n - c, k) / C(n, k) as a product of k factors: binomials would overflow.
    tries = np.arange(k)
    left = np.maximum(wrong[:, None] - tries, 0) / (n - tries)
    return 1.0 - np.prod(left, axis=1)


def _over_problems(rate: np.ndarray) -> Estimate:
    count = len(rate)
    error = np.std(rate, ddof=1) / np.sqrt(count) if count > 1 else np.nan
    return Estimate(float(np.mean(rate)), float(error))


def _check_stages(stages: Mapping[str, Stage], size: int | None = None) -> None:
    sizes = {len(stage.correct) for stage in stages.values()}
    wanted = sizes if size is None else sizes | {size}
    if not stages or len(wanted) != 1:
        raise ValueError(
            "there must be at least one stage, and all must have the same problems, got"
            f" {len(stages)} stages with {sorted(sizes)} problems"
            + ("" if size is None else f" and groups for {size}")
            + "; evaluate all on one set."
        )
