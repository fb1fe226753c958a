"""--track opens a run of wandb or trackio, gives its writer and closes it.

A fake stands for the library: what it is called with, and in which order. That the real
ones take it so is held offline in tests/run/test_tracker.py.
"""

import sys
import types

import pytest

from experiments import track


@pytest.fixture(params=["wandb", "trackio"])
def library(request, monkeypatch):
    """(name, what happened) of a library that is not there."""
    happened = []

    class Run:
        def log(self, metrics, step=None):
            happened.append(("log", step, metrics))

        def finish(self):
            happened.append(("finish",))

    def init(**options):
        happened.append(("init", options))
        return Run()

    fake = types.SimpleNamespace(init=init)
    monkeypatch.setitem(sys.modules, request.param, fake)
    return request.param, happened


STEP = {"kind": "step", "phase": "rl", "step": 3, "seconds": 1.0, "reward/mean": 0.5}


def test_the_run_has_the_name_of_its_folder_and_its_numbers(library):
    kind, happened = library
    with track.tracked(kind, "train-1", {"seed": 4}, resume=True) as writers:
        (writer,) = writers
        writer.write([STEP])
    (_, options), (_, step, logged), end = happened
    assert options["name"] == "train-1" and options["config"] == {"seed": 4}
    # wandb knows a run by its id: without it a resumed run would be another one.
    assert options.get("id") == ("train-1" if kind == "wandb" else None)
    assert options["resume"] == "allow"
    assert step == 3 and logged["reward/mean"] == 0.5
    assert end == ("finish",)


def test_a_new_run_continues_no_other_of_the_same_name(library):
    # Two machines may both have a folder train-1.
    kind, happened = library
    with track.tracked(kind, "train-1", {}):
        assert happened[0][1]["resume"] == "never"


def test_a_library_that_refuses_is_one_error(monkeypatch):
    def init(**options):
        raise RuntimeError("nobody has logged in")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with (
        pytest.raises(ValueError, match="open the run train-1, got RuntimeError: no"),
        track.tracked("wandb", "train-1", {}),
    ):
        pass


def test_it_is_closed_when_the_run_fails(library):
    kind, happened = library
    with pytest.raises(RuntimeError), track.tracked(kind, "train-1", {}):
        raise RuntimeError
    assert happened[-1] == ("finish",)


def test_only_the_leader_of_several_processes_opens_one(library, monkeypatch):
    kind, happened = library
    monkeypatch.setattr(track.processes, "leads", lambda: False)
    with track.tracked(kind, "train-1", {}) as writers:
        assert writers == ()
    assert happened == []


def test_without_the_flag_nothing_is_opened():
    with track.tracked(None, "train-1", {}) as writers:
        assert writers == ()


def test_a_library_that_is_not_there_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with (
        pytest.raises(
            ValueError, match=r"--track wandb must have .*install rljax\[track\]"
        ),
        track.tracked("wandb", "train-1", {}),
    ):
        pass
