"""Figures of methods in the framework of gradient masses (arXiv:2607.01490).

`plane` shows methods as points by sign and difficulty, `curves` draws E[m_S] and E[m_F]
over the true solve rate. Both take profiles by name:

    table = {"GRPO": profile.analytic(profile.advantage_of(algorithms.grpo()), 8), ...}
    plot.plane(table).savefig("plane.png")
"""

import itertools
from collections.abc import Mapping

import numpy as np

from rljax.analysis import profile
from rljax.analysis.profile import Profile

_EDGE = np.log(20.0)  # larger ratios, also infinite ones, are drawn at the border
_RATIOS = {"1/8": 1 / 8, "1/4": 1 / 4, "1/2": 1 / 2, "1": 1, "2": 2, "4": 4, "8": 8}


def plane(profiles: Mapping[str, Profile]):
    """Each method as a point: log m_S / m_F against the mass-weighted solve rate.

    The prompts' true solve rates are taken as uniformly distributed.

    Args:
      profiles: profiles by name of the method.

    Returns:
      A matplotlib figure.
    """
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(10, 6.5), layout="constrained")
    points: dict[tuple[float, float], list[str]] = {}
    for name, table in profiles.items():
        at = profile.place(table)
        x = round(float(np.clip(at.log_ratio, -_EDGE, _EDGE)), 2) + 0.0
        points.setdefault((x, round(at.difficulty, 3)), []).append(name)

    for side in (-1, 1):
        ax.axvspan(side * 0.92 * _EDGE, side * 9, color="0.95", lw=0)
    ax.axvline(0, color="0.8", lw=1, zorder=0)
    xy = np.array(list(points))
    colors = np.select([xy[:, 0] < 0, xy[:, 0] > 0], ["tab:red", "tab:green"], "0.35")
    ax.scatter(*xy.T, s=36, color=colors, zorder=3)
    ax.set_xticks(
        [-_EDGE, *np.log(list(_RATIOS.values())), _EDGE],
        ["failures\nonly", *_RATIOS, "successes\nonly"],
    )
    ax.set_xlim(-1.3 * _EDGE, 1.5 * _EDGE)
    low, high = xy[:, 1].min(), xy[:, 1].max()
    margin = 0.1 * max(high - low, 0.1)
    ax.set_ylim(low - margin, high + margin)
    ax.set_xlabel("sign:  mass up / mass down,  $m_S / m_F$")
    ax.set_ylabel("difficulty:  solve rate weighted by mass  (hard below)")
    ax.spines[["top", "right"]].set_visible(False)
    _label(ax, {xy: _wrap(names) for xy, names in points.items()})
    return ax.figure


def _wrap(names, num_columns=2) -> str:
    """The label of a point: the names of its methods, in lines of two."""
    rows = [names[i : i + num_columns] for i in range(0, len(names), num_columns)]
    return ",\n".join(", ".join(row) for row in rows)


def _label(ax, labels):
    """Puts each label at the nearest free spot around its point."""
    figure = ax.figure
    figure.canvas.draw()  # fixes the layout, as boxes below are in pixels
    unit = figure.dpi / 72
    taken = [_box(ax.transData.transform(xy), 8 * unit, 8 * unit) for xy in labels]
    inside = ax.get_window_extent().extents
    directions = [(1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1)]
    spots = [
        (r * dx, r * dy * slant)
        for r in range(9, 150, 7)
        for slant in (0.5, 1, 2)
        for dx, dy in directions
    ]
    # Points in the crowded middle first, as they have the fewest free spots.
    for xy in sorted(labels, key=lambda xy: abs(xy[0])):
        text = ax.annotate(
            labels[xy],
            xy,
            (0, 0),
            textcoords="offset points",
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": "0.65", "lw": 0.6, "shrinkB": 3},
        )
        text.set_in_layout(False)
        size = text.get_window_extent().size
        width, height = size / unit
        for dx, dy in spots:
            left = dx if dx > 0 else dx - width if dx < 0 else -width / 2
            center = ax.transData.transform(xy) + unit * np.array(
                [left + width / 2, dy]
            )
            box = _box(center, (width + 4) * unit, (height + 2) * unit)
            free = not any(_overlap(box, other) for other in taken)
            if free and np.all(box[:2] > inside[:2]) and np.all(box[2:] < inside[2:]):
                break
        text.set_position((left, dy))
        taken.append(box)


def _box(center, width, height):
    half = np.array([width, height]) / 2
    return np.concatenate([center - half, center + half])


def _overlap(a, b) -> bool:
    return bool(np.all(a[:2] < b[2:]) and np.all(b[:2] < a[2:]))


def curves(profiles: Mapping[str, Profile]):
    """E[m_S] and E[m_F] of each method over the true solve rate, in two panels.

    Scales differ between methods; `profile.equalised` makes them comparable.

    Args:
      profiles: profiles by name of the method.

    Returns:
      A matplotlib figure.
    """
    import matplotlib.pyplot as plt

    _, axes = plt.subplots(
        1, 2, figsize=(11, 4.2), sharex=True, sharey=True, layout="constrained"
    )
    p = np.linspace(1e-3, 1 - 1e-3, 400)
    colors = itertools.cycle([f"C{i}" for i in range(10)])
    # Dashes as well, so that methods that coincide in one panel remain visible.
    dashes = itertools.cycle(["-", (0, (5, 2)), (0, (1.5, 1.5))])
    for name, table in profiles.items():
        style = {"color": next(colors), "linestyle": next(dashes), "lw": 2}
        for ax, mass in zip(axes, profile.expected(table, p), strict=True):
            ax.plot(p, mass, label=name, **style)
    for ax, title in zip(axes, ("successes up, $E[m_S]$", "failures down, $E[m_F]$")):
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
