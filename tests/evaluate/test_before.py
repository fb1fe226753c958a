"""What a run keeps of the policy that RL began with, and what it exports in the end."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_disk import FullDisk
from hugging_face_folders import small_params

from rljax import evaluate
from rljax.evaluate.before import FILE, Before
from rljax.model import DecoderConfig, hugging_face
from rljax.run import files
from rljax.run import run_dir as run_folder

STAGE = evaluate.Stage(np.eye(3, dtype=bool), np.array([True, False, True]))


def assert_is_stage(found):
    np.testing.assert_array_equal(found.correct, STAGE.correct)
    np.testing.assert_array_equal(found.greedy, STAGE.greedy)


def test_a_stage_comes_back_and_leaves_one_file(tmp_path):
    Before(tmp_path).keep(STAGE)
    assert_is_stage(Before(tmp_path).read())
    assert os.listdir(tmp_path) == [FILE]


def test_a_full_disk_at_the_end_of_the_warm_start_ends_no_run(
    tmp_path, monkeypatch, capsys
):
    # The error of `numpy.savez` ended it, though checkpoints and metrics survive one.
    disk = FullDisk(100)
    monkeypatch.setattr(files, "open", disk.open, raising=False)
    first = Before(tmp_path)
    first.keep(STAGE)
    first.write()
    assert capsys.readouterr().out.count("No space left") == 1
    assert os.listdir(tmp_path) == []  # no half of it either
    assert_is_stage(first.read())
    disk.room = 10_000
    first.write()
    assert_is_stage(Before(tmp_path).read())


@pytest.mark.parametrize("damage", [None, b"", b"PK\3\4 torn", b"no archive"])
def test_a_stage_that_is_lost_is_left_out_with_a_word(tmp_path, capsys, damage):
    # Killed before the disk had room again: not an error after hours of training.
    if damage is not None:
        (tmp_path / FILE).write_bytes(damage)
    assert Before(tmp_path).read() is None
    assert "only the last stage" in capsys.readouterr().out


def tiny():
    config = DecoderConfig(
        vocab_size=8,
        num_layers=1,
        d_model=8,
        num_heads=2,
        num_kv_heads=2,
        head_dim=4,
        d_ff=8,
    )
    return config, small_params(config)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_policy_of_nan_is_not_saved(tmp_path, bad):
    config, params = tiny()
    leaves, tree = jax.tree.flatten(params)
    leaves[-1] = leaves[-1].at[(0,) * leaves[-1].ndim].set(bad)
    with pytest.raises(ValueError, match=r"params must be finite, but \["):
        hugging_face.save(tmp_path / "policy", config, jax.tree.unflatten(tree, leaves))
    assert os.listdir(tmp_path) == []


def test_what_a_killed_export_left_goes_at_the_next_resume_and_nothing_else(tmp_path):
    def opened(resume):
        with run_folder.open_run(tmp_path / "run", {}, resume=resume) as run_dir:
            return run_dir

    run_dir: pathlib.Path = opened(False)
    for name in (".policy.0123abcd", ".policy.mine", "policy", "policy.0123abcd"):
        (run_dir / name).mkdir()
        (run_dir / name / "model.safetensors").write_bytes(b"part")
    opened(True)
    left = {path.name for path in run_dir.iterdir()} - {"config.json", "run.lock"}
    assert left == {".policy.mine", "policy", "policy.0123abcd"}
