"""The list of metrics that are shown on a run's board, in its report, in comparisons.

To show your own metric, add an entry to `SHOWN`. `completion` formats completions.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Panel(NamedTuple):
    """A plot of the report: all metrics whose names match one of the patterns.

    title: of the plot.
    patterns: as for `fnmatch`.
    kind: of the records that have the metrics.
    by_time: whether the x axis is minutes instead of steps.
    """

    title: str
    patterns: tuple[str, ...]
    kind: str = "step"
    by_time: bool = False

    def select(self, names: Iterable[str]) -> list[str]:
        """The panel's metrics among `names`; `_error`s belong to their estimates."""
        return [
            name
            for name in names
            if not name.endswith("_error")
            and any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
        ]


class Shown(NamedTuple):
    """How a metric is shown.

    pattern: name of the metric; "*" stands for the name of a term.
    label: short name for tables and the board.
    panel: title of its plot in the report.
    unit: of its values; "": none.
    on_board: whether the board of a running experiment shows it.
    compared: whether tables of several runs show it.
    """

    pattern: str
    label: str
    panel: str
    unit: str = ""
    on_board: bool = False
    compared: bool = False

    def matches(self, name: str) -> bool:
        """Whether this entry describes the metric."""
        return fnmatch.fnmatchcase(name, self.pattern)

    @property
    def heading(self) -> str:
        """The label with its unit."""
        return f"{self.label}, {self.unit}" if self.unit else self.label


_MASSES = "Gradient masses m_S and m_F"
_CONTROLLED = "Controlled alpha and delta"
_REFUSED = "Refused updates and failed verdicts"
_GAP = "Sampler against learner (gap in nats, share of tokens beyond 0.1)"

SHOWN = (
    Shown(
        "reward/mean",
        "reward",
        "Mean reward in training",
        on_board=True,
    ),
    Shown(
        "policy/entropy_nats",
        "entropy",
        "Entropy (nats)",
        unit="nats",
        on_board=True,
        compared=True,
    ),
    Shown("mass/positive", "m_S", _MASSES, on_board=True, compared=True),
    Shown("mass/negative", "m_F", _MASSES, on_board=True, compared=True),
    Shown(
        "mass/log_ratio",
        "log(m_S / m_F)",
        "Log ratio of masses log(m_S / m_F)",
        compared=True,
    ),
    Shown("mass/difficulty", "difficulty", "Difficulty: solve rate weighted by mass"),
    Shown("reward/mixed_share", "mixed groups", "Mixed groups (share)", compared=True),
    Shown("*/alpha", "alpha", _CONTROLLED, on_board=True, compared=True),
    Shown("*/delta", "delta", _CONTROLLED, on_board=True, compared=True),
    Shown("samples/length_mean", "length", "Completion length (tokens)", on_board=True),
    Shown("time/tokens_per_second", "tokens/s", "Throughput (tokens/s)"),
    Shown("gap/*", "gap", _GAP),
    Shown("update/refused_in_row", "refused", _REFUSED, on_board=True),
    Shown("update/refused", "refused share", _REFUSED),
    Shown("verify/failed", "verifier failed", _REFUSED),
)

_ACCURACY = ("*pass@*",)


def _panels() -> tuple[Panel, ...]:
    titles = dict.fromkeys(entry.panel for entry in SHOWN)
    return (
        Panel("Held-out accuracy", _ACCURACY, "evaluation"),
        Panel("Held-out accuracy by wall time", _ACCURACY, "evaluation", True),
        *(
            Panel(title, tuple(x.pattern for x in SHOWN if x.panel == title))
            for title in titles
        ),
    )


PANELS = _panels()
"""The plots of a report, in order."""


def completion(entry: Mapping[str, Any], longest: int | None = None) -> str:
    """A prompt, its completion and the verdict, as text.

    Args:
      entry: with `prompt`, `text`, `answer` and `correct`.
      longest: maximum characters of prompt and of completion; longer ones lose their
        beginning, and line breaks are escaped. None: no limit.
    """
    verdict = "right" if entry["correct"] else f"wrong, it is {entry['answer']}"

    def end(text):
        if longest is None:
            return text
        text = text.replace("\n", "\\n")
        return text if len(text) <= longest else f"... {text[-longest:]}"

    return f"{end(entry['prompt'])}{end(entry['text'])}   {verdict}"
