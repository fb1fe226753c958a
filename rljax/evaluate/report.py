"""The report of a run: one self-contained HTML file with curves, tables and samples.

It is made from the run folder (`config.json`, `metrics.jsonl`). Sections without data
are left out, so even a run of three steps has a report.
"""

import base64
import html
import io
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rljax.evaluate import estimate
from rljax.run import display, files, record
from rljax.run.record import Record
from rljax.run.run_dir import read_config
from rljax.run.shown import PANELS, Panel


class Completion(NamedTuple):
    """A completion to show.

    stage: the policy it is from.
    prompt, text: the prompt and the completion, decoded.
    answer: the reference answer.
    correct: whether the verifier accepted the completion.
    verdict: the verdict in words; "" shows "correct" or "wrong".
    """

    stage: str
    prompt: str
    text: str
    answer: str
    correct: bool
    verdict: str = ""

    def record(self) -> dict[str, str | bool]:
        """The fields that the run folder stores and the display shows."""
        fields = ("prompt", "text", "answer", "correct")
        return {name: getattr(self, name) for name in fields}


_COLORS = ("#2563eb", "#dc6803", "#0d9488", "#9333ea", "#db2777", "#65a30d")


def write_report(
    run_dir: str | os.PathLike,
    *,
    title: str,
    tables: Sequence[estimate.Table] = (),
    completions: Sequence[Completion] = (),
    note: str = "",
) -> pathlib.Path:
    """Writes `report.html` and, if there are curves, `curves.png` into the run folder.

    Args:
      run_dir: the run folder.
      title: title of the report.
      tables: such as `estimate.compare` of the warm start and the end.
      completions: samples to show.
      note: a paragraph under the title.

    Returns:
      The path of the report.
    """
    run_dir = pathlib.Path(run_dir)
    records = record.read(run_dir / record.FILE)
    events = [r for r in records if r["kind"] == "event"]
    picture = curves(records)
    if picture is not None:
        files.replace_file(run_dir / "curves.png", picture)
    starts = [e for e in events if e["event"] == "run/started"]
    facts = starts[-1] if starts else {}
    sections = [
        _header(title, note, facts),
        _cards(records),
        _section("Curves", _image(picture)) if picture else "",
        *(_section(t.title, _table(t.header, t.rows, t.note)) for t in tables),
        _section("Samples", "".join(map(_completion, completions))),
        _section("Events", _events(events)),
        _section("Configuration", _pairs(read_config(run_dir))),
        _section("Versions", _pairs(facts.get("versions", {}))),
    ]
    page = _PAGE.format(
        title=html.escape(title), style=_STYLE, body="\n".join(filter(None, sections))
    )
    path = run_dir / "report.html"
    files.replace_file(path, page.encode())
    return path


def curves(records: Sequence[Record]) -> bytes | None:
    """A PNG of all panels with data; None if there are none."""
    panels = [(p, names) for p in PANELS if (names := _names(records, p))]
    if not panels:
        return None
    # Not pyplot: it would need a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, (panel, names) in zip(axes, panels, strict=False):
        _draw(ax, panel, names, records)
    for ax in list(axes)[len(panels) :]:
        ax.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def _names(records: Sequence[Record], panel: Panel) -> list[str]:
    """Names of the panel's metrics that have at least one finite value."""
    found = {
        name
        for entry in records
        if entry["kind"] == panel.kind
        for name, value in record.scalars(entry).items()
        if np.isfinite(value)
    }
    return sorted(panel.select(found))


def _draw(ax, panel: Panel, names: Sequence[str], records) -> None:
    for name, color in zip(names, _COLORS, strict=False):
        label = name.removeprefix("policy/")
        steps, seconds, value = record.series(records, name, panel.kind)
        x = seconds / 60 if panel.by_time else steps
        if panel.kind == "evaluation":
            ax.plot(x, value, ".-", color=color, label=label, linewidth=1.6)
            *_, error = record.series(records, f"{name}_error", panel.kind)
            if len(error) == len(value):
                ax.fill_between(
                    x, value - error, value + error, color=color, alpha=0.15, lw=0
                )
        elif len(value) < 100:
            ax.plot(x, value, color=color, label=label, linewidth=1.6)
        else:  # values in a pale color, their running mean on top
            ax.plot(x, value, color=color, alpha=0.25, linewidth=0.7)
            ax.plot(x, _running_mean(value), color=color, label=label, linewidth=1.6)
    if not panel.by_time:
        _mark_phases(ax, records)
    ax.set_title(panel.title, fontsize=10, loc="left", color="#334155")
    ax.set_xlabel("minutes" if panel.by_time else "training steps", fontsize=8)
    ax.tick_params(labelsize=8, colors="#64748b")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(names) > 1 or panel.kind == "evaluation":
        ax.legend(fontsize=7, frameon=False)


def _running_mean(value: np.ndarray) -> np.ndarray:
    """Running mean with a window of 2 % of the values; ignores non-finite ones."""
    window = max(len(value) // 50, 1)
    finite = np.isfinite(value)
    total = np.cumsum(np.where(finite, value, 0.0))
    count = np.cumsum(finite)
    total[window:], count[window:] = (
        total[window:] - total[:-window],
        count[window:] - count[:-window],
    )
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mark_phases(ax, records) -> None:
    steps = [r for r in records if r["kind"] == "step"]
    for before, after in itertools.pairwise(steps):
        if before["phase"] != after["phase"]:
            ax.axvline(before["step"], color="#94a3b8", linestyle=":", linewidth=1)
            ax.annotate(
                f" {after['phase']}",
                (before["step"], 1),
                xycoords=("data", "axes fraction"),
                va="top",
                fontsize=7,
                color="#64748b",
            )


def _header(title: str, note: str, facts: Record) -> str:
    lines = [f"<h1>{html.escape(title)}</h1>"]
    if note:
        lines.append(f"<p>{html.escape(note)}</p>")
    where = [facts[name] for name in ("time", "devices") if name in facts]
    if where:
        lines.append(f"<p class=dim>{html.escape(' · '.join(where))}</p>")
    if "command" in facts:
        lines.append(f"<pre class=command>{html.escape(facts['command'])}</pre>")
    return "<header>" + "".join(lines) + "</header>"


def _cards(records: Sequence[Record]) -> str:
    steps = [r for r in records if r["kind"] == "step"]
    cards = []
    if steps:
        cards += [
            ("training steps", f"{steps[-1]['step']:,}"),
            ("wall time", display.duration(max(r["seconds"] for r in records))),
        ]
    *_, tokens = record.series(records, "samples/tokens")
    if len(tokens):
        cards.append(("tokens sampled", f"{np.nansum(tokens):,.0f}"))
    for name in _names(records, PANELS[0]):
        *_, value = record.series(records, name, "evaluation")
        text = f"{100 * value[0]:.1f} → {100 * value[-1]:.1f} %"
        cards.append((f"held-out {name}, first → last", text))
    cards = [
        f"<div class=card><b>{html.escape(value)}</b>{html.escape(label)}</div>"
        for label, value in cards
    ]
    return f"<div class=cards>{''.join(cards)}</div>" if cards else ""


def _section(title: str, body: str) -> str:
    if not body:
        return ""
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _image(png: bytes) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="curves" src="data:image/png;base64,{data}">'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    def row(cells, tag):
        inner = "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells)
        return f"<tr>{inner}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    note = f"<p class=dim>{html.escape(note)}</p>" if note else ""
    head = f"<thead>{row(header, 'th')}</thead>" if header else ""
    return f"<table>{head}<tbody>{body}</tbody></table>{note}"


def _completion(sample: Completion) -> str:
    verdict = sample.verdict or ("correct" if sample.correct else "wrong")
    kind = "good" if sample.correct else "bad"
    return (
        f"<div class=sample><span class={kind}>{html.escape(verdict)}</span>"
        f" <span class=dim>{html.escape(sample.stage)} · reference answer:"
        f" {html.escape(sample.answer)}</span>"
        f"<pre><span class=prompt>{html.escape(sample.prompt)}</span>"
        f"{html.escape(sample.text)}</pre></div>"
    )


def _events(events: Sequence[Record]) -> str:
    if not events:
        return ""
    rows = [
        (e["step"], display.duration(e["seconds"]), e["event"], e["message"])
        for e in events
    ]
    return _table(("step", "time", "event", "what happened"), rows)


def _pairs(values: dict) -> str:
    return _table((), list(values.items())) if values else ""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>{style}</style></head>
<body>{body}</body></html>
"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1e293b; background: #f8fafc;
  max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { font-size: 26px; margin: 8px 0; } h2 { font-size: 18px; margin: 0 0 12px; }
section, header, .card { background: #fff; border: 1px solid #e2e8f0;
  border-radius: 10px; padding: 18px 22px; margin: 0 0 16px; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 0 0 16px; }
.card { flex: 1; min-width: 150px; margin: 0; font-size: 13px; color: #64748b; }
.card b { display: block; font-size: 21px; color: #0f172a; }
.dim { color: #64748b; font-size: 13px; } img { width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 4px 18px 4px 0; border-bottom: 1px solid #eef2f7;
  vertical-align: top; overflow-wrap: anywhere; }
th { color: #64748b; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f1f5f9;
  padding: 10px 12px; border-radius: 6px; font-size: 13px; margin: 6px 0 14px; }
.prompt { color: #64748b; }
.good, .bad { border-radius: 4px; padding: 1px 8px; font-size: 13px; color: #fff; }
.good { background: #15803d; } .bad { background: #b91c1c; }
"""
