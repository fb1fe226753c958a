"""Completions of evaluations: in a file of their own, shown, and none twice."""

import io

import pytest
import toy_run
from rich.console import Console

from rljax.run import record, shown
from rljax.run.phase import COMPLETIONS


def evaluate(state):
    text = f"\n{int(state.step)}"
    some = {"prompt": "1+1=", "text": text, "answer": "2", "correct": False}
    return {**toy_run.evaluate(state), COMPLETIONS: [some, {**some, "correct": True}]}


def phases(**changes):
    return toy_run.phases(evaluate=evaluate, **changes)


def texts(run_dir):
    found = record.read(run_dir / record.COMPLETIONS)
    return [(r["phase"], r["step"], r["text"], r["correct"]) for r in found]


def test_completions_survive_a_crash_and_come_once(tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    out = io.StringIO()
    toy_run.go(whole, phases=phases(), console=Console(file=out, width=200))
    disturbed = phases()
    stream = toy_run.Disturbed(disturbed[1].stream.seed, 3, toy_run.crash)
    disturbed[1] = toy_run.dataclasses.replace(disturbed[1], stream=stream)
    with pytest.raises(toy_run.Crash):
        # The checkpoint is older than the last evaluation, which is done again.
        toy_run.go_silently(run_dir, phases=disturbed, checkpoint_every=100)
    toy_run.go_silently(run_dir, phases=phases(), resume=True, checkpoint_every=100)
    assert texts(run_dir) == texts(whole) and len(texts(whole)) >= 4
    assert len(set(texts(whole))) == len(texts(whole))
    # The metrics hold evaluations without texts.
    evaluations = toy_run.records(run_dir, "evaluation", "kind")
    assert 2 * len(evaluations) == len(texts(run_dir))
    assert not toy_run.records(run_dir, "completion")
    assert "1+1=\\n" in out.getvalue() and "wrong, it is 2" in out.getvalue()


def test_of_long_texts_the_end_is_shown():
    entry = {"prompt": "a" * 9, "text": "b\nc", "answer": "2", "correct": True}
    assert shown.completion(entry) == "aaaaaaaaab\nc   right"
    assert shown.completion(entry, longest=4) == "... aaaab\\nc   right"
