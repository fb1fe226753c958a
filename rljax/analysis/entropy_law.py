"""The law of entropy and performance: R = -a exp(H) + b.

A run trades entropy H (nats) for accuracy R. Without entropy control the law predicts
early which R the run will reach, b - a at H = 0, and the exchange rate,
dR/dH = -a exp(H).

Source: arXiv:2505.22617, eq. (1) and fig. 1 (PAPER).
Variants: H there is the mean over responses of the mean entropy of a response's tokens;
  here it is the token mean that runs record.
"""

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rljax.run import record


class EntropyLaw(NamedTuple):
    """A fitted law.

    a, b: its constants.
    r_squared: share of R's variance that it explains.
    """

    a: float
    b: float
    r_squared: float

    @property
    def ceiling(self) -> float:
        """R at entropy 0."""
        return self.b - self.a

    def __call__(self, entropy) -> np.ndarray:
        """R at an entropy in nats."""
        return self.b - self.a * np.exp(np.asarray(entropy, np.float64))


def fit(entropy: np.ndarray, performance: np.ndarray) -> EntropyLaw:
    """Fits the law, which is linear in exp(H), by least squares.

    Args:
      entropy: [N] nats.
      performance: [N] accuracies or mean rewards.

    Raises:
      ValueError: for different shapes, fewer than two different entropies, or values
        that are not finite.
    """
    x = np.exp(np.asarray(entropy, np.float64))
    y = np.asarray(performance, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(
            f"entropy and performance must have one shape [N], got {x.shape} and"
            f" {y.shape}; pass one performance for each entropy."
        )
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        raise ValueError(
            "entropy and performance must be finite, got NaN or infinity; remove those"
            " points."
        )
    if len(np.unique(x)) < 2:
        raise ValueError(
            "the law has two constants and needs at least two different entropies, got"
            f" {len(np.unique(x))}; record more of the run."
        )
    dx, dy = x - x.mean(), y - y.mean()
    slope = dx @ dy / (dx @ dx)
    total = dy @ dy
    left = np.sum((dy - slope * dx) ** 2)
    share = 1 - left / total if total > 0 else 1.0
    return EntropyLaw(float(-slope), float(y.mean() - slope * x.mean()), float(share))


def points(
    records: Sequence[record.Record], performance: str
) -> tuple[np.ndarray, np.ndarray]:
    """(H, R) of a run, each [N]: every R with the entropy interpolated to its step.

    Args:
      records: made by `record.read`.
      performance: name of the evaluation metric R.

    Raises:
      ValueError: if the run recorded no entropies or no such metric.
    """
    entropy = record.series(records, "policy/entropy_nats")
    found = record.series(records, performance, "evaluation")
    for name, series in (("policy/entropy_nats", entropy), (performance, found)):
        if series.shape[1] == 0:
            raise ValueError(
                f"the run must have recorded {name!r}, but has none; name a metric that"
                " is in its metrics.jsonl."
            )
    return np.interp(found[0], entropy[0], entropy[2]), found[2]


def plot(
    path: str | os.PathLike,
    law: EntropyLaw,
    entropy: np.ndarray,
    performance: np.ndarray,
    *,
    name: str = "R",
) -> None:
    """Writes a figure of the points and the law to an image file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    ax = figure.subplots()
    ax.plot(entropy, performance, ".", color="#2563eb")
    x = np.linspace(0, max(np.max(entropy), 1e-3), 100)
    label = f"{law.b:.3g} - {law.a:.3g} exp(H),  R² = {law.r_squared:.3f}"
    ax.plot(x, law(x), color="#dc6803", label=label)
    ax.set(xlabel="entropy H (nats)", ylabel=name)
    ax.legend()
    figure.savefig(pathlib.Path(path), dpi=150)
