"""Run folders in a bucket: fsspec's file system in memory stands for Google's."""

import os
import shutil

import fsspec
import pytest
import toy_run
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from rljax.run import bucket, fault, ownership

WHERE = "gs://bucket/runs/one"


class InMemory(MemoryFileSystem):
    """What a path gs://... names, in memory."""

    protocol = ("gcs", "gs")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://"))


@pytest.fixture
def storage():
    fsspec.register_implementation("gcs", InMemory, clobber=True)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield epath.Path(WHERE)
    MemoryFileSystem.store.clear()


def go(tmp_path, *, resume=False, **options):
    """The toy run; its checkpoints lie elsewhere, as orbax asks Google itself."""
    with bucket.kept(WHERE, resume=resume) as place:
        state = toy_run.go_silently(
            place.folder,
            resume=resume,
            checkpoint_dir=tmp_path / "checkpoints",
            writers=place.writers,
            **options,
        )
        return toy_run.outcome(state, place.folder), place.folder


def test_a_run_that_lost_its_machine_goes_on_from_the_bucket(storage, tmp_path, whole):
    phases = toy_run.disturbed(1, 2, toy_run.crash)
    with pytest.raises(toy_run.Crash):
        go(tmp_path, phases=phases)
    outcome, folder = go(tmp_path, resume=True)
    assert outcome == whole[1]
    assert not folder.exists()
    names = {path.name for path in storage.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "tensorboard"}
    assert ownership.FILE not in names
    lines = (storage / "metrics.jsonl").read_text().splitlines()
    assert sum('"kind": "step"' in line for line in lines) == 12
    assert len(list((storage / "tensorboard").iterdir())) == 2


def test_a_new_run_needs_an_empty_folder(storage, tmp_path):
    (storage / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be new.*gs://bucket.*config\.json"):
        go(tmp_path)


def test_an_owner_stops_when_another_takes_its_folder_over(storage, tmp_path):
    def take_over():
        (storage / ownership.FILE).write_text('{"pid": 1, "host": "another"}')

    phases = toy_run.disturbed(1, 1, take_over)
    with pytest.raises(fault.RunFault, match=r"gs://bucket/runs/one was taken over"):
        go(tmp_path, phases=phases)
    # The warm start's steps and the first dispatch's are there, and no later ones.
    text = (storage / "metrics.jsonl").read_text()
    assert text.count('"kind": "step"') <= 6
    assert "another" in (storage / ownership.FILE).read_text()


def test_an_outage_is_told_and_what_it_kept_back_comes_later(
    storage, tmp_path, monkeypatch
):
    (tmp_path / ownership.FILE).write_text("mine")
    (tmp_path / "metrics.jsonl").write_text("1")
    copy = bucket.Copy(storage, tmp_path)

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to the bucket")

    with monkeypatch.context() as broken:
        broken.setattr(InMemory, "_open", refuse)
        with pytest.raises(OSError, match="no route to the bucket"):
            copy.write([])
        copy.sync()  # the run must go on
    with pytest.raises(OSError, match="no route to the bucket"):
        copy.write([])
    copy.write([])  # told once
    copy.sync()
    assert (storage / "metrics.jsonl").read_text() == "1"


def test_files_that_are_gone_are_removed_and_hidden_ones_are_not_copied(
    storage, tmp_path
):
    folder = tmp_path / "run"
    (folder / "policy").mkdir(parents=True)
    (folder / ownership.FILE).write_text("mine")
    (folder / "policy" / "a").write_text("1")
    (folder / "policy" / "b").write_text("2")
    (folder / ".policy.0123").write_text("in the making")
    copy = bucket.Copy(storage, folder)
    copy.write([])
    copy.sync()
    shutil.rmtree(folder / "policy")
    (folder / "policy").mkdir()
    (folder / "policy" / "b").write_text("3")
    copy.sync()
    assert sorted(path.name for path in storage.iterdir()) == ["policy", "run.lock"]
    assert [path.name for path in (storage / "policy").iterdir()] == ["b"]
    assert (storage / "policy" / "b").read_text() == "3"


def test_a_folder_on_a_disk_is_its_own_copy(tmp_path):
    with bucket.kept(tmp_path / "run", resume=False) as place:
        assert place == bucket.Place(tmp_path / "run")
    assert not os.path.exists(tmp_path / "run")
