"""Tables and plots of a comparison, with bootstrap intervals.

Intervals are 95 % percentile intervals of 2,000 resamples, with replacement, of both
seeds and problems. All algorithms use the same resamples, so differences are paired.
With few seeds the intervals tend to be too narrow.

Symbols: `E` evaluations, `S` seeds, `N` problems, `K` training steps.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from rljax.run.shown import SHOWN

RESAMPLES = 2000


class Outcome(NamedTuple):
    """The result of an algorithm, at its best learning rate.

    rate: the learning rate.
    tried: learning rate, as text -> mean validation pass@1 at the end.
    steps: i[E], training steps at each evaluation, from 0 on.
    correct: bool[E, S, N, 8], whether 8 samples per test problem are correct.
    greedy: bool[E, S, N], whether the greedy completion is correct.
    metrics: name -> f32[S, K].
    """

    rate: float
    tried: dict[str, float]
    steps: np.ndarray
    correct: np.ndarray
    greedy: np.ndarray
    metrics: dict[str, np.ndarray]

    def pass_at_1(self) -> np.ndarray:
        """f[E, S, N]: fraction of samples that are correct."""
        return np.mean(self.correct, -1)

    def pass_at_8(self) -> np.ndarray:
        """f[E, S, N]: 1 if any of the 8 samples is correct, else 0."""
        return np.any(self.correct, -1).astype(float)


def restored(fields: dict) -> Outcome:
    """An outcome from its fields in a file, where numbers are arrays."""
    tried = {rate: float(score) for rate, score in fields["tried"].items()}
    return Outcome(**fields | {"rate": float(fields["rate"]), "tried": tried})


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def percent(self, sign: str = "") -> str:
        """In percent, as text; `sign` "+" shows the sign of positive numbers."""
        mean, low, high = (100 * x for x in self)
        return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


@functools.cache
def _resamples(size: int, seed: int) -> np.ndarray:
    """f[RESAMPLES, size]: the weight of each of `size` items in each resample."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return drawn / size


def interval(values: np.ndarray) -> Interval:
    """The interval of the mean of f[S, N], with both axes resampled; N may be 1."""
    seeds, problems = (_resamples(n, i) for i, n in enumerate(values.shape))
    means = np.sum((seeds @ values) * problems, 1)
    return Interval(
        float(np.mean(values)), *map(float, np.percentile(means, (2.5, 97.5)))
    )


def band(values: np.ndarray) -> np.ndarray:
    """f[3, K]: mean, low and high of f[S, K], with seeds resampled."""
    means = _resamples(len(values), 0) @ values
    return np.stack([values.mean(0), *np.percentile(means, (2.5, 97.5), axis=0)])


def steps_to(steps: np.ndarray, curve: np.ndarray, level: float) -> float:
    """The interpolated training step at which a curve f[E] first reaches a level.

    NaN if it never does.
    """
    above = np.flatnonzero(curve >= level)
    if not len(above):
        return np.nan
    i = above[0]
    if i == 0:
        return float(steps[0])
    share = (level - curve[i - 1]) / (curve[i] - curve[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def _reached(outcome: Outcome, level: float) -> np.ndarray:
    """f[S]: the training step at which each seed's pass@1 reaches a level."""
    curves = outcome.pass_at_1().mean(-1).T
    return np.array([steps_to(outcome.steps, curve, level) for curve in curves])


def _peak(outcome: Outcome) -> tuple[float, int]:
    """The highest mean pass@1, and its training step."""
    curve = outcome.pass_at_1().mean((1, 2))
    return float(curve.max()), int(outcome.steps[curve.argmax()])


def write(
    outcomes: Mapping[str, Outcome], folder: pathlib.Path, levels: Sequence[float]
) -> str:
    """Writes table.md, results.json and curves.png; for FADE also schedule.png.

    Args:
      outcomes: by algorithm; others are compared with the first.
      folder: to write to.
      levels: of pass@1, as fractions; the steps to reach them are reported.

    Returns:
      The text of table.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = tables(outcomes, levels)
    (folder / "table.md").write_text(text)
    results = {name: summary(o, levels) for name, o in outcomes.items()}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    curves(outcomes).savefig(folder / "curves.png", dpi=120)
    moving = {n: o for n, o in outcomes.items() if "policy/alpha" in o.metrics}
    if moving:
        schedule(moving).savefig(folder / "schedule.png", dpi=120)
    return text


def tables(outcomes: Mapping[str, Outcome], levels: Sequence[float]) -> str:
    """Three tables in Markdown: results, training dynamics, learning rates."""
    first = next(iter(outcomes))
    shape = outcomes[first].correct.shape
    lines = [
        f"{shape[2]} test problems with {shape[3]} samples each, {shape[1]} seeds."
        " Numbers are in percent, with 95 % bootstrap intervals over seeds and problems"
        " in brackets.",
        _markdown(
            ["", "lr", "start: pass@1, pass@8", "pass@1", "pass@8", "greedy"]
            + [f"pass@1 - {first}", f"pass@8 - {first}"]
            + [f"steps to {100 * level:g} %" for level in levels]
            + ["peak pass@1"],
            [_result_row(n, o, outcomes[first], levels) for n, o in outcomes.items()],
        ),
        "Training metrics: means over seeds in the first, middle and last tenth of the"
        " steps.",
        _markdown(
            ["", *(label for label, _ in _DYNAMICS)],
            [
                [name, *(_tenths(o.metrics.get(key)) for _, key in _DYNAMICS)]
                for name, o in outcomes.items()
            ],
        ),
        "Final validation pass@1 (%) by learning rate; the best rate was chosen.",
        _markdown(
            ["", "rates"],
            [
                [n, ", ".join(f"{r}: {100 * v:.1f}" for r, v in o.tried.items())]
                for n, o in outcomes.items()
            ],
        ),
    ]
    return "\n\n".join(lines) + "\n"


# (heading, name) of the training metrics that are shown.
_DYNAMICS = tuple(
    (entry.heading, entry.pattern.replace("*", "policy"))
    for entry in SHOWN
    if entry.compared
)


def _result_row(name, outcome, first, levels) -> list[str]:
    scores = outcome.pass_at_1(), outcome.pass_at_8()
    baselines = first.pass_at_1(), first.pass_at_8()
    changes = [
        interval(score[-1] - baseline[-1]).percent("+")
        for score, baseline in zip(scores, baselines, strict=True)
    ]
    peak, step = _peak(outcome)
    return [
        name,
        f"{outcome.rate:g}",
        ", ".join(f"{100 * score[0].mean():.1f}" for score in scores),
        *(interval(score[-1]).percent() for score in scores),
        f"{100 * outcome.greedy[-1].mean():.1f}",
        *(["", ""] if outcome is first else changes),
        *(_steps_cell(_reached(outcome, level)) for level in levels),
        f"{100 * peak:.1f} at {step}",
    ]


def _steps_cell(reached: np.ndarray) -> str:
    there = np.isfinite(reached)
    if not there.all():
        return f"{there.sum()} of {len(reached)} seeds"
    mean, low, high = interval(reached[:, None])
    return f"{mean:.0f} [{low:.0f}, {high:.0f}]"


def _tenths(values: np.ndarray | None) -> str:
    """Means of f[S, K] over the first, middle and last tenth of K."""
    if values is None:
        return ""
    curve = values.mean(0)
    width = max(len(curve) // 10, 1)
    middle = (len(curve) - width) // 2
    parts = curve[:width], curve[middle : middle + width], curve[-width:]
    return " → ".join(f"{part.mean():.3g}" for part in parts)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary(outcome: Outcome, levels: Sequence[float]) -> dict:
    """The numbers of an algorithm for results.json; rates are fractions."""

    def points(values):
        return [interval(v)._asdict() for v in values]

    return {
        "learning_rate": outcome.rate,
        "validation_pass@1_by_learning_rate": outcome.tried,
        "steps": outcome.steps.tolist(),
        "pass@1": points(outcome.pass_at_1()),
        "pass@8": points(outcome.pass_at_8()),
        "greedy": points(outcome.greedy.astype(float)),
        "pass@1_by_seed": outcome.pass_at_1().mean(-1).T.round(5).tolist(),
        "steps_to": {
            str(level): [
                None if np.isnan(x) else round(x, 1) for x in _reached(outcome, level)
            ]
            for level in levels
        },
        "metrics_by_seed": {
            key: np.round(outcome.metrics[key].astype(float), 5).tolist()
            for _, key in _DYNAMICS
            if key in outcome.metrics
        },
    }


def curves(outcomes: Mapping[str, Outcome]) -> Figure:
    """Plots of pass@1, pass@8, entropy and masses over training, with intervals."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    for name, outcome in outcomes.items():
        scores = (outcome.pass_at_1(), outcome.pass_at_8())
        for ax, values in zip(axes[:2], scores, strict=True):
            _draw(ax, name, outcome.steps, np.array([interval(v) for v in values]).T)
        for ax, (_, key) in zip(axes[2:], _DYNAMICS[:4], strict=True):
            _draw_metric(ax, name, outcome.metrics.get(key))
    titles = ["pass@1", "pass@8", *(label for label, _ in _DYNAMICS[:4])]
    return _finish(figure, axes, titles)


def schedule(outcomes: Mapping[str, Outcome]) -> Figure:
    """Plots of FADE's alpha and delta, above the averages that determine them."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    shown = {
        "alpha": "policy/alpha",
        "delta": "policy/delta",
        "average solve rate": "policy/p_ema",
        "average entropy, nats": "policy/h_ema",
    }
    for name, outcome in outcomes.items():
        for ax, key in zip(axes, shown.values(), strict=True):
            _draw_metric(ax, name, outcome.metrics.get(key))
    return _finish(figure, axes, list(shown))


def _draw(ax, name, steps, values):
    mean, low, high = values
    (line,) = ax.plot(steps, mean, label=name, lw=1.8)
    ax.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, lw=0)


def _draw_metric(ax, name, values, most=60):
    """Draws means over at most `most` blocks of steps."""
    if values is None:
        ax.plot([], [])  # keeps each algorithm's colour the same in all panels
        return
    size = -(-values.shape[1] // most)
    blocks = np.array_split(
        np.arange(values.shape[1]), range(size, values.shape[1], size)
    )
    means = np.stack([values[:, block].mean(1) for block in blocks], 1)
    _draw(ax, name, [block.mean() + 1 for block in blocks], band(means))


def _finish(figure, axes, titles):
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("training step")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return figure
