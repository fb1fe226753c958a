"""wandb and trackio, offline; skipped where they are not installed."""

import math

import numpy as np
import pytest
from fake_records import evaluation, event, step

from rljax.run.tracker import Tracker
from rljax.run.writer import Writers

RECORDS = [
    step(1, **{"reward/mean": np.float32(0.25)}),
    step(2, **{"reward/mean": np.float32(0.5), "gap": math.nan}),
    evaluation(2, **{"pass@1": 0.75}),
    event(2),
]


def test_steps_and_evaluations_are_logged_with_their_step_and_events_are_not():
    class Run:
        def __init__(self):
            self.logged = []

        def log(self, metrics, step=None):
            self.logged.append((step, metrics))

    run = Run()
    assert Writers([Tracker(run)]).write([RECORDS[0], *RECORDS[2:]]) is None
    # Two metrics of one name would be one curve: an evaluation's says that it is one.
    want = [(1, {"reward/mean": 0.25}), (2, {"evaluation/pass@1": 0.75})]
    assert run.logged == want
    assert all(type(v) is float for _, found in run.logged for v in found.values())


def test_the_completions_of_an_evaluation_are_one_text():
    logged = []

    class Run:
        def log(self, metrics, step=None):
            logged.append((step, metrics))

    def completion(correct):
        texts = {"prompt": "1+1=", "text": "3", "answer": "2", "correct": correct}
        return {**evaluation(4), "kind": "completion", **texts}

    records = [evaluation(4, **{"pass@1": 0.5}), completion(False), completion(True)]
    assert Writers([Tracker(Run())]).write(records) is None
    assert logged == [
        (4, {"evaluation/pass@1": 0.5}),
        (4, {"completions": "1+1=3   wrong, it is 2\n\n1+1=3   right"}),
    ]


def test_a_tracker_that_fails_does_not_stop_the_run():
    class Run:
        def log(self, metrics, step=None):
            raise RuntimeError("the server is away")

    problem = Writers([Tracker(Run())]).write(RECORDS)
    assert "the server is away" in problem


def test_wandb_has_the_numbers(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    with wandb.init(mode="offline", project="test", dir=tmp_path) as run:
        writers = Writers([Tracker(run)])
        assert writers.write(RECORDS) is None
        # A resumed run comes by the same steps again.
        assert writers.write(RECORDS[1:2]) is None
        assert writers.write([step(3)]) is None  # wandb sums up the steps before
        writers.close()
        names = ("reward/mean", "evaluation/pass@1", "_step")
        summary = {name: run.summary[name] for name in names}
    # A later evaluation of the same step is added to it.
    assert summary == {"reward/mean": 0.5, "evaluation/pass@1": 0.75, "_step": 2}
    assert list(tmp_path.rglob("*.wandb"))


def test_trackio_has_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio")
    run = trackio.init(project="test", name="run", embed=False)
    assert Writers([Tracker(run)]).write(RECORDS) is None
    run.finish()
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("test", "run")
    assert [row["step"] for row in rows] == [1, 2, 2]
    assert rows[1]["reward/mean"] == 0.5
    assert rows[2]["evaluation/pass@1"] == 0.75
