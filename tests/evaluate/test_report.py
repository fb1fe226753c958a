"""The report: complete, self-contained, and never in the way of a short run."""

import base64
import html.parser
import json
import re

import numpy as np
import pytest

from rljax import evaluate
from rljax.evaluate import report
from rljax.run import record


class Page(html.parser.HTMLParser):
    """The texts, tags and attributes of a page; fails on tags that do not match."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.attributes = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def fake_run(run_dir, num_steps=40):
    lines = [
        {
            "kind": "event",
            "phase": "warm start",
            "step": 0,
            "seconds": 0.0,
            "event": "run/started",
            "message": "from the start",
            "command": "python -m experiments.addition --run-dir <x>",
            "versions": {"jax": "0.10"},
            "devices": "1 x H100",
        }
    ]
    for i in range(1, num_steps + 1):
        where = {
            "phase": "rl" if i > 10 else "warm start",
            "step": i,
            "seconds": 30 * i,
        }
        values = {
            "reward/mean": i / num_steps if i != 3 else float("nan"),
            "policy/alpha": 0.5,
            "samples/tokens": 100.0,
        }
        lines.append({"kind": "step", **where, **values})
        if i % 10 == 0:
            values = {"pass@1": i / 50, "pass@1_error": 0.01}
            lines.append({"kind": "evaluation", **where, **values})
    (run_dir / "metrics.jsonl").write_bytes(b"".join(map(record.line, lines)))
    (run_dir / "config.json").write_text(json.dumps({"rate": 0.001, "sizes": [1, 2]}))
    return record.read(run_dir / "metrics.jsonl")


def test_a_report_holds_everything_and_loads_nothing(tmp_path):
    fake_run(tmp_path)
    stages = {
        "warm start": evaluate.Stage(np.array([[True, False], [False, False]])),
        "after RL": evaluate.Stage(np.array([[True, True], [True, False]])),
    }
    tables = [evaluate.compare(stages, ks=(1, 2))]
    path = report.write_report(tmp_path, title="A & B", tables=tables, note="why")
    text = path.read_text()
    page = Page(text)
    for part in (
        "A & B",
        "why",
        "python -m experiments.addition --run-dir <x>",
        "1 x H100",
        "20.0 → 80.0 %",  # the first and the last evaluation
        "4,000",  # tokens
        "20:00",  # wall time of 40 steps of 30 seconds
        "pass@2",
        "75.0 ± 25.0",
        "from the start",
        "rate",
        "0.001",
    ):
        assert part in page.text, part
    assert not re.search(r"https?://|src=\"(?!data:)|@import|url\(", text)
    assert not {"script", "link", "iframe"} & set(page.tags)
    (source,) = [value for name, value in page.attributes if name == "src"]
    picture = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    assert picture == (tmp_path / "curves.png").read_bytes()
    assert picture[:4] == b"\x89PNG"


def test_completions_are_shown_as_text(tmp_path):
    # What a model writes is not to be run by a browser.
    evil = "</pre><script>alert('x')</script>&amp;"
    sample = report.Completion("<i>rl</i>", evil, evil, evil, False, evil)
    path = report.write_report(
        tmp_path, title="<script>", completions=[sample, sample._replace(correct=True)]
    )
    page = Page(path.read_text())
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert page.text.count(evil) == 8
    kinds = [value for name, value in page.attributes if name == "class"]
    assert kinds.count("good") == kinds.count("bad") == 1


def test_a_completion_without_words_says_whether_it_is_correct(tmp_path):
    sample = report.Completion("rl", "1+1=", "2", "2", True)
    path = report.write_report(tmp_path, title="t", completions=[sample])
    assert "correct" in Page(path.read_text()).text


@pytest.mark.parametrize("num_steps", [0, 1, 11])
def test_short_runs_have_reports(tmp_path, num_steps):
    fake_run(tmp_path, num_steps)
    Page(report.write_report(tmp_path, title="t").read_text())
    assert (tmp_path / "curves.png").exists() == (num_steps > 0)


def test_an_empty_folder_has_a_report(tmp_path):
    page = Page(report.write_report(tmp_path, title="t").read_text())
    assert "Curves" not in page.text


def test_panels_show_what_was_measured_and_leave_errors_out(tmp_path):
    records = fake_run(tmp_path)
    names = {p.title: report._names(records, p) for p in report.PANELS}
    assert names["Held-out accuracy"] == ["pass@1"]
    assert names["Controlled alpha and delta"] == ["policy/alpha"]
    assert names["Entropy (nats)"] == []


def test_the_running_mean_skips_what_is_not_finite():
    # 100 values: a window of 2. A NaN that were added would spoil all that follow.
    value = np.arange(100.0)
    value[3] = np.nan
    got = report._running_mean(value)
    np.testing.assert_allclose(got[:6], [0, 0.5, 1.5, 2, 4, 4.5])
    assert np.isnan(report._running_mean(np.full(100, np.nan))).all()
