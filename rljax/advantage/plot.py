"""Figures of methods in the framework of gradient masses (arXiv:2607.01490).

`plane` places methods by sign and difficulty, `curves` draws E[m_S] and E[m_F] over the
true solve rate. Both take profiles by name:

    profiles = {"GRPO": analytic(advantage_of(algorithms.grpo()), 8), ...}
    plane(profiles).savefig("plane.png")
"""

from collections.abc import Mapping

import numpy as np

from rljax.advantage import profile
from rljax.advantage.profile import Profile

_EDGE = np.log(16.0)  # sign ratios beyond it, infinite ones too, stand at the border


def plane(profiles: Mapping[str, Profile], p=None, ax=None):
    """Each method as a point: log m_S / m_F against the mass-weighted solve rate.

    Args:
      profiles: tables by name.
      p: true solve rates of the prompts, in (0, 1); None spreads them evenly.
      ax: matplotlib axes; None makes a figure.

    Returns:
      The figure.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        _, ax = plt.subplots(figsize=(9.5, 6.2), layout="constrained")
    places = {name: profile.place(table, p) for name, table in profiles.items()}
    x = {name: np.clip(at.log_ratio, -_EDGE, _EDGE) for name, at in places.items()}
    y = {name: at.difficulty for name, at in places.items()}

    ax.axvspan(-9, -_EDGE * 0.92, color="0.94", lw=0)
    ax.axvspan(_EDGE * 0.92, 9, color="0.94", lw=0)
    ax.axvline(0, color="0.75", lw=1, zorder=0)
    for name in profiles:
        ax.scatter(x[name], y[name], s=34, color=_color(x[name]), zorder=3)
    _labels(ax, x, y)
    ticks = np.log([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8])
    ax.set_xticks(
        [-_EDGE, *ticks, _EDGE],
        ["failures\nonly", "1/8", "1/4", "1/2", "1", "2", "4", "8", "successes\nonly"],
    )
    ax.set_xlim(-_EDGE * 1.12, _EDGE * 1.75)
    ax.set_xlabel("sign:  mass up / mass down,  $m_S / m_F$  (log scale)")
    ax.set_ylabel("difficulty:  mass-weighted solve rate\n(hard prompts below)")
    ax.spines[["top", "right"]].set_visible(False)
    return ax.figure


def _color(x: float) -> str:
    return "tab:gray" if abs(x) < 0.02 else "tab:green" if x > 0 else "tab:red"


def _labels(ax, x, y):
    """Names to the right of their points, moved apart along y with thin leaders."""
    low, high = min(y.values()), max(y.values())
    margin = 0.12 * max(high - low, 0.1)
    ax.set_ylim(low - margin, high + margin)
    gap = 0.034 * (high - low + 2 * margin)
    # Points that are near in x share a column of labels.
    columns: list[list[str]] = []
    for name in sorted(x, key=x.__getitem__):
        if columns and x[name] - x[columns[-1][0]] < 0.45:
            columns[-1].append(name)
        else:
            columns.append([name])
    for names in columns:
        names = sorted(names, key=y.__getitem__)
        at = _spread([y[name] for name in names], gap)
        right = max(x[name] for name in names) + 0.16
        for name, height in zip(names, at, strict=True):
            ax.annotate(
                name,
                (x[name], y[name]),
                (right, height),
                fontsize=8,
                va="center",
                arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.6},
            )


def _spread(heights, gap):
    """Sorted heights moved as little as needed to be at least `gap` apart."""
    blocks: list[list[float]] = []  # [first position, count, sum of wanted firsts]
    for i, height in enumerate(heights):
        blocks.append([1, height - i * gap])
        while len(blocks) > 1 and blocks[-2][1] > blocks[-1][1]:
            (n, a), (m, b) = blocks[-2], blocks.pop()
            blocks[-1] = [n + m, (n * a + m * b) / (n + m)]
    flat = [first for count, first in blocks for _ in range(int(count))]
    return [first + i * gap for i, first in enumerate(flat)]


def curves(profiles: Mapping[str, Profile], axes=None):
    """E[m_S] and E[m_F] of each method over the true solve rate, in two panels.

    Args:
      profiles: tables by name; G is the table's.
      axes: two matplotlib axes; None makes a figure.

    Returns:
      The figure.
    """
    import matplotlib.pyplot as plt

    if axes is None:
        _, axes = plt.subplots(
            1, 2, figsize=(10, 4), sharex=True, sharey=True, layout="constrained"
        )
    p = np.linspace(1e-3, 1 - 1e-3, 400)
    colors = plt.get_cmap("tab10" if len(profiles) <= 10 else "tab20").colors
    for i, (name, table) in enumerate(profiles.items()):
        for ax, mass in zip(axes, profile.expected(table, p), strict=True):
            # Dashes as well as colours: balanced methods coincide between panels.
            style = ["-", "--", "-.", ":"][i // len(colors) % 4]
            ax.plot(p, mass, style, color=colors[i % len(colors)], lw=1.8, label=name)
    for ax, title in zip(axes, ("up: $E[m_S]$", "down: $E[m_F]$"), strict=True):
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("solve rate $p$  (hard to easy)")
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlim(0, 1)
        ax.axhline(0, color="0.75", lw=0.8, zorder=0)
    axes[0].set_ylabel("expected mass of a group")
    axes[-1].legend(
        frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    return axes[0].figure
