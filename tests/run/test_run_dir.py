"""The folder of a run: made once, and gone on with only by the same run."""

import dataclasses
import json
import math
import os
import pathlib

import pytest
import toy_run
from etils import epath

from rljax.run import ownership
from rljax.run.run_dir import open_run, read_config


def test_a_folder_in_use_needs_resume(tmp_path):
    with open_run(tmp_path / "run", {"seed": 0}, resume=False):
        pass
    with pytest.raises(ValueError, match=r"resume=True.* another run folder"):
        _open(tmp_path / "run", {"seed": 0}, resume=False)
    (tmp_path / "empty").mkdir()
    _open(tmp_path / "empty", {"seed": 0}, resume=False)


def test_a_folder_that_is_no_runs_is_left_alone(tmp_path):
    # A home directory by mistake would get a configuration, and lose its reports.
    (tmp_path / "report.html").write_text("mine")
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"pass the folder of the run|resume=True"):
            _open(tmp_path, {"seed": 0}, resume=resume)
        assert os.listdir(tmp_path) == ["report.html"]


def test_what_may_change_is_told_and_written_down(tmp_path, capsys):
    def again(**changes):
        config = {"rate": 1.0, "steps": 2, "keep": 3} | changes
        may_change = {"steps", "keep"}
        with open_run(tmp_path, config, resume=True, may_change=may_change):
            pass

    _open(tmp_path, {"rate": 1.0, "steps": 2, "keep": 3}, resume=False)
    again(steps=5)
    assert "resumes with another steps: 2 before, 5 now" in capsys.readouterr().out
    assert read_config(tmp_path)["steps"] == 5
    with pytest.raises(ValueError, match=r"but rate: 1\.0 before.*may change"):
        again(rate=2.0, keep=1)
    assert read_config(tmp_path)["keep"] == 3  # nothing of what was refused


def test_resume_with_another_configuration_names_the_fields(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        rate: float = 1e-3
        sizes: tuple = (1, 2)
        where: pathlib.Path = pathlib.Path("data")

    _open(tmp_path, Config(), resume=False)
    _open(tmp_path, Config(), resume=True)  # a tuple comes back as a list
    with pytest.raises(ValueError, match=r"rate: 0.001 before, 0.1 now\. Pass"):
        _open(tmp_path, Config(rate=0.1), resume=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"extra": 1, **json.loads(path.read_text())}))
    with pytest.raises(ValueError, match="extra: 1 before, nothing now; rate"):
        _open(tmp_path, Config(rate=0.1), resume=True)
    # Python's `json` would take the last of two equal keys.
    for text in ("{torn", "[1]", "null", '{"rate": 1, "rate": 0.001}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"config\.json must hold the config"):
            _open(tmp_path, Config(), resume=True)


def test_a_number_that_json_does_not_know_comes_back_as_the_same_text(tmp_path):
    # Python writes Infinity, which is no JSON: the next resume would refuse the file.
    config = {"clip": math.inf, "rate": 0.5}
    _open(tmp_path, config, resume=False)
    _open(tmp_path, config, resume=True)
    assert read_config(tmp_path) == {"clip": "Infinity", "rate": 0.5}
    with pytest.raises(ValueError, match=r"clip: Infinity before, 0\.2 now"):
        _open(tmp_path, {"clip": 0.2, "rate": 0.5}, resume=True)


@pytest.mark.parametrize("kind", [str, epath.Path])
def test_a_run_folder_in_a_bucket_is_refused(kind, tmp_path, monkeypatch):
    # pathlib would make a local folder `gs:` of it and lose the run with the machine.
    monkeypatch.chdir(tmp_path)
    where = kind("gs://bucket/run")
    with pytest.raises(
        ValueError, match=r"on a file system.*gs://bucket.*checkpoint_d"
    ):
        _open(where, {}, resume=False)
    with pytest.raises(ValueError, match="on a file system"):
        toy_run.train.train(
            toy_run.phases(), toy_run.make_state(), where, checkpoint_every=2
        )
    assert os.listdir(tmp_path) == []
    assert ownership.local(kind(tmp_path)) == tmp_path


def _open(run_dir, config, *, resume):
    with open_run(run_dir, config, resume=resume):
        pass
