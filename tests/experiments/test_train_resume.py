"""A run that goes on: prolonged, with other intervals, and what must not change."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import cli, train
from rljax import export
from rljax.evaluate import kept
from rljax.run import record

SIZES = train.QUICK | {
    "num_prompts": 8,
    "num_samples": 2,
    "max_tokens": 2,
    "num_validation": 4,
    "num_test": 0,
    "evaluation_samples": 2,
    "keep": 9,
}


def run(folder, monkeypatch, *, resume=False, **changes):
    """What the command line runs, on one device."""
    make = train.with_numbers("grpo", train.Config)
    config = make(algorithm="grpo", **SIZES | changes)
    flags = ["train", "--run-dir", str(folder), "--no-compilation-cache"]
    flags += ["--mesh", "data=1"]
    monkeypatch.setattr(sys, "argv", flags + ["--resume"] * resume)
    cli.main("train", train.build, config, config, "A run.")


def weights(folder):
    return load_file(folder / "model.safetensors")


def lines(folder, name=record.FILE):
    """What must not depend on interruptions."""
    times = ("seconds", "time/tokens_per_second")
    return [
        {k: v for k, v in r.items() if k not in times}
        for r in record.read(folder / name)
        if r["kind"] != "event"
    ]


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.slow
def test_a_prolonged_run_is_the_uninterrupted_one_and_every_checkpoint_a_policy(
    tmp_path, monkeypatch, capsys
):
    first, whole = tmp_path / "first", tmp_path / "whole"
    run(first, monkeypatch, num_steps=2)
    short = weights(first / kept.LAST)
    # Of a schedule over 4 steps the first 2 would be others.
    with pytest.raises(SystemExit, match=r"schedule_steps: 2 before, 4 now.*num_steps"):
        run(first, monkeypatch, num_steps=4, resume=True)
    with pytest.raises(SystemExit, match=r"learning_rate: 0.001 before, 0.1 now"):
        run(first, monkeypatch, num_steps=2, learning_rate=0.1, resume=True)
    longer = {"num_steps": 4, "schedule_steps": 2}
    run(first, monkeypatch, **longer, keep=5, resume=True)
    assert "num_steps: 2 before, 4 now" in capsys.readouterr().out
    assert json.loads((first / "config.json").read_text())["keep"] == 5
    run(whole, monkeypatch, **longer)
    assert lines(first) == lines(whole)
    assert lines(first, record.COMPLETIONS) == lines(whole, record.COMPLETIONS)
    steps = [r["step"] for r in lines(first, record.COMPLETIONS)]
    assert steps == [0] * 4 + [2] * 4 + [4] * 4  # none twice
    for name in (kept.LAST, kept.BEST):
        assert_same(weights(first / name), weights(whole / name))
    # The policy of each checkpoint, by its step, its folder, and as the newest.
    export.export(first, tmp_path / "newest")
    export.export(first, tmp_path / "second", step=2)
    export.export(first / "checkpoints" / "00000002", tmp_path / "named")
    assert_same(weights(tmp_path / "newest"), weights(first / kept.LAST))
    assert_same(weights(tmp_path / "second"), short)
    assert_same(weights(tmp_path / "named"), short)
    files = {p.name: p.read_bytes() for p in (tmp_path / "newest").iterdir()}
    policy = {p.name: p.read_bytes() for p in (first / kept.LAST).iterdir()}
    del policy[kept.FILE]
    assert files == policy
    narrow = export.export(first, tmp_path / "narrow", dtype="bfloat16")
    assert json.loads((narrow / "config.json").read_text())["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match=r"steps: 2, 4"):
        export.export(first, tmp_path / "third", step=3)


def test_the_schedule_ends_where_it_is_told_whatever_the_steps(monkeypatch):
    seen = []
    monkeypatch.setattr(
        train.assemble.optimizer,
        "linear_decay",
        lambda peak, steps: seen.append(steps) or (lambda step: peak),
    )
    make = train.with_numbers("grpo", train.Config)
    for changes in ({}, {"schedule_steps": 7}):
        config = make(algorithm="grpo", **train.QUICK | changes)
        config = dataclasses.replace(config, num_minibatches=2)
        train.build(config)
    assert set(seen[: len(seen) // 2]) == {8} and set(seen[len(seen) // 2 :]) == {14}
