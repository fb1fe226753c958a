"""Checkpoints give the same bits back, or the ones before."""

import errno
import functools
import gc
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax.run import checkpoint, orbax_options


class Saver:
    """`Checkpoints` in a folder, with the events it reports."""

    def __init__(self, directory, keep=2):
        self.events = []
        self.checkpoints = checkpoint.Checkpoints(
            directory, keep=keep, report=lambda *event: self.events.append(event)
        )

    def __call__(self, step, state, info=None):
        self.checkpoints.save(step, state, {"step": step} if info is None else info)
        self.checkpoints.wait()


@pytest.fixture
def saver(tmp_path):
    saver = Saver(tmp_path)
    yield saver
    saver.checkpoints.close()


def restore_newest(directory, state):
    return checkpoint.restore_newest(directory, lambda _: checkpoint.template(state))


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape, a.committed) == (b.dtype, b.shape, b.committed)
        assert not b.committed or a.sharding == b.sharding
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_train_state_comes_back_bit_for_bit(tmp_path, saver):
    state = toy_run.make_state()
    # A negative zero, a NaN with a payload and a denormal survive only as bits.
    odd = np.array([0x80000000, 0x7FC01234, 1, 0, 0, 0], np.uint32).view(np.float32)
    state = state.replace(params={**state.params, "w": jnp.array(odd.reshape(2, 3))})
    saver(7, state, {"stream": {"count": 3}, "seconds": 0.1})
    assert checkpoint.newest(tmp_path).path.name == "00000007"
    found, got, problems = restore_newest(tmp_path, state)
    assert (found.path.name, problems, saver.events) == ("00000007", [], [])
    assert found.info == {"stream": {"count": 3}, "seconds": 0.1}
    assert saver.checkpoints.latest == found.path
    assert_same(got, state)


def test_arrays_are_encoded_in_turn_however_large(tmp_path, saver, monkeypatch):
    # Orbax refuses an array that is larger than what it may encode at a time.
    monkeypatch.setattr(orbax_options, "_ENCODED_BYTES", 16)
    state = {name: jnp.arange(64.0) + i for i, name in enumerate("abc")}
    saver(1, state)
    assert saver.events == []
    assert_same(restore_newest(tmp_path, state)[1], state)


def test_shardings_come_back_and_unbound_arrays_stay_unbound(tmp_path, saver):
    # A restored `step` that is bound to device 0 could not meet `w` on the mesh.
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    put = {
        "w": NamedSharding(mesh, PartitionSpec("a", "b")),
        "v": NamedSharding(mesh, PartitionSpec(None, "a")),
        "all": NamedSharding(mesh, PartitionSpec()),
    }
    state = {
        k: jax.device_put(jnp.arange(32.0).reshape(4, 8), s) for k, s in put.items()
    }
    state |= {"step": jnp.int32(3), "key": jax.random.key(1, impl="rbg")}
    state["bound"] = jax.device_put(jnp.ones(2), jax.devices()[1])
    saver(1, state)
    got = checkpoint.restore(tmp_path / "00000001", checkpoint.template(state))
    assert_same(got, state)
    assert float(jax.jit(lambda s: s["w"][0, 0] + s["step"])(got)) == 3.0


def test_a_save_is_a_snapshot_though_the_state_is_donated_meanwhile(tmp_path, saver):
    # Handing out a view of the device's buffer would save some later step's numbers.
    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        return jax.tree.map(lambda x: x + 1, state)

    state = {"big": jnp.zeros((512, 512)), "small": jnp.zeros(3, jnp.bfloat16)}
    template = checkpoint.template(state)
    saver.checkpoints.save(1, state, {})
    for _ in range(50):
        state = step(state)
    saver.checkpoints.wait()
    got = checkpoint.restore(tmp_path / "00000001", template)
    assert not np.any(got["big"])
    assert not np.any(got["small"])


def test_the_newest_are_kept(tmp_path, saver):
    for step in (5, 10, 9_000, 123_456_789):
        saver(step, {"x": jnp.float32(step)})
    # By name the last one would be the oldest: it has a digit more.
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["00009000", "123456789"]
    assert checkpoint.newest(tmp_path).info == {"step": 123_456_789}


def test_an_empty_or_absent_folder_has_none(tmp_path):
    for directory in (tmp_path, tmp_path / "absent"):
        assert checkpoint.newest(directory) is None
        assert restore_newest(directory, {}) == (None, None, [])


def test_what_unfinished_saves_and_removals_left_is_removed(tmp_path, saver):
    state = {"x": jnp.ones(3)}
    for step in (1, 2):
        saver(step, state)
    for rest in ("3/state", "4/state/d", "5.orbax-checkpoint-tmp"):
        (tmp_path / f"0000000{rest}").mkdir(parents=True)
    shutil.copy(tmp_path / "00000002" / "_CHECKPOINT_METADATA", tmp_path / "00000004")
    found, _, problems = restore_newest(tmp_path, state)
    assert (found.path.name, problems) == ("00000002", [])
    # Number 4 names step 2 in its metadata: somebody copied it, and not all of it.
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["00000001", "00000002", "00000004"]


def test_only_what_the_run_wrote_is_ever_removed(tmp_path, saver):
    # Names that begin with a digit, that are dates, a copy under another step, a link.
    state = {"x": jnp.ones(3)}
    saver(4, state)
    shutil.copytree(tmp_path / "00000004", tmp_path / "00000004.bak")
    shutil.copytree(tmp_path / "00000004", tmp_path / "20240101")
    for name in ("2024-notes", "00000000", "00000001.deleted", "7", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state").write_text("mine")
        (tmp_path / name / "notes.txt").write_text("mine")
    (tmp_path / "00000009").write_text("mine")
    (tmp_path / "00000010").symlink_to(tmp_path / "2024-notes")
    mine = {path.name for path in tmp_path.iterdir()} - {"00000004"}
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    for step in (5, 6, 7):
        saver(step, state)
    assert saver.events == []
    found, _, problems = restore_newest(tmp_path, state)
    assert (found.path.name, problems) == ("00000007", [])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == mine | {"00000006", "00000007"}
    for path, changed in before.items():
        gone = "00000004" in path.parts
        assert gone or path.stat().st_mtime_ns == changed, path


def test_a_folder_of_the_users_is_not_written_over(tmp_path, saver):
    # Orbax would remove it and write there.
    saver(1, {"x": jnp.ones(3)})
    (tmp_path / "00000002").mkdir()
    (tmp_path / "00000002" / "notes.txt").write_text("mine")
    saver(2, {"x": jnp.ones(3)})
    ((event, message),) = saver.events
    assert event == "checkpoint/failed"
    assert "00000002: it exists and is not of this run; move it away" in message
    assert (tmp_path / "00000002" / "notes.txt").read_text() == "mine"
    assert saver.checkpoints.latest == tmp_path / "00000001"


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [_flip, _halve, pathlib.Path.unlink])
def test_damage_to_any_file_never_gives_other_numbers(tmp_path, saver, damage):
    # Orbax itself restores from a flipped bit in its data without complaint. Some of
    # its files hold nothing that a restore needs.
    state = {"x": jnp.arange(1000.0), "key": jax.random.key(0)}
    saver(1, state)
    saver(2, state)
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "00000002", good)
    files = [p for p in good.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) >= 8
    fell_back = []
    for file in files:
        name = file.relative_to(good)
        shutil.rmtree(tmp_path / "00000002", ignore_errors=True)
        shutil.copytree(good, tmp_path / "00000002")
        damage(tmp_path / "00000002" / name)
        found, got, problems = restore_newest(tmp_path, state)
        assert_same(got, state)
        if found.path.name == "00000001":
            fell_back.append(file.parent.name)
            assert all("00000002 is corrupt" in problem for problem in problems)
    gc.collect()  # what orbax leaves of reads beside one that failed
    assert "d" in fell_back  # the arrays
    assert "good" in fell_back  # the metadata


def test_no_whole_checkpoint_among_some_is_an_error_not_a_new_start(tmp_path, saver):
    # A new start would drop the metrics of all steps.
    state = {"x": jnp.arange(1000.0)}
    saver(1, state)
    saver(2, state)
    for step in (1, 2):
        for file in (tmp_path / f"0000000{step}/state/ocdbt.process_0/d").iterdir():
            _halve(file)
    with pytest.raises(ValueError, match=r"none is \(00000002: .*; 00000001: "):
        restore_newest(tmp_path, state)
    assert {p.name for p in tmp_path.iterdir()} == {"00000001", "00000002"}
    shutil.rmtree(tmp_path / "00000001")
    (tmp_path / "00000002").rename(tmp_path / "00000003")
    with pytest.raises(ValueError, match="00000003: belongs to another run or version"):
        restore_newest(tmp_path, state)


def test_a_checkpoint_that_cannot_be_read_now_is_not_put_aside(
    tmp_path, saver, monkeypatch
):
    # A network that fails for a minute must not cost the steps since the one before.
    state = {"x": jnp.ones(3)}
    saver(1, state)
    saver(2, state)

    def fail(*args, **options):
        raise OSError(errno.EIO, "Input/output error")

    for name in ("open", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoint.newest(tmp_path).path), name, fail)
            if name == "open":  # what tensorstore says of the same
                from orbax.checkpoint import v1 as orbax

                patch.setattr(orbax, "load_checkpointables", lambda *args: 1 / 0)
            with pytest.raises(OSError, match="Input/output error"):
                restore_newest(tmp_path, state)
    assert {p.name for p in tmp_path.iterdir()} == {"00000001", "00000002"}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"a": jnp.ones(3, jnp.bfloat16)},
            r"\['a'\]: saved float32\[3\], now bfloat16",
        ),
        ({"a": jnp.ones(4)}, r"\['a'\]: saved float32\[3\], now float32\[4\]"),
        ({"b": jnp.ones(3)}, r"\['a'\]: saved float32\[3\], now nothing; \['b'\]"),
        ({"a": None}, "now nothing"),
    ],
)
def test_another_state_than_the_saved_one_is_refused(tmp_path, saver, like, message):
    # Orbax casts to another dtype without complaint. The checkpoint is not corrupt
    # and must stay where it is.
    saver(1, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=message):
        checkpoint.restore(tmp_path / "00000001", checkpoint.template(like))
    assert checkpoint.newest(tmp_path).path.name == "00000001"


def test_what_cannot_be_saved_is_refused_at_once(saver):
    with pytest.raises(ValueError, match=r"JSON-able, but .* bytes"):
        saver(1, {"a": jnp.ones(3)}, {"stream": b"binary"})
    with pytest.raises(ValueError, match=r"jax.Array, got ndarray at \['a'\]"):
        saver(1, {"a": np.ones(3)})


def test_a_save_that_fails_is_an_event_and_the_last_good_one_stays(
    tmp_path, saver, monkeypatch
):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    saver(1, {"x": jnp.ones(3)})
    for name in ("mkdir", "rename"):  # when a save begins and when it ends
        with monkeypatch.context() as patch:
            patch.setattr(type(checkpoint.newest(tmp_path).path), name, full)
            saver(2, {"x": jnp.ones(3)})
        event, message = saver.events.pop()
        assert event == "checkpoint/failed"
        assert "No space left on device" in message
        assert str(tmp_path / "00000001") in message
        assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    for step in (2, 3):  # no more than `keep` = 2, no less
        saver(step, {"x": jnp.ones(3)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000002", "00000003"]
    assert saver.events == []


def test_an_older_one_that_cannot_be_removed_does_not_fail_the_save(
    tmp_path, saver, monkeypatch
):
    def refuse(*args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    for step in (1, 2):
        saver(step, {"x": jnp.ones(3)})
    with monkeypatch.context() as patch:
        patch.setattr(type(checkpoint.newest(tmp_path).path), "rmtree", refuse)
        saver(3, {"x": jnp.ones(3)})
    assert saver.events == []
    assert saver.checkpoints.latest == tmp_path / "00000003"
    saver(4, {"x": jnp.ones(3)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000003", "00000004"]


def test_saving_runs_in_the_background(tmp_path, saver, monkeypatch):
    # A blocking save would wait for the event that only comes after it.
    go_on = threading.Event()
    saver(1, {"x": jnp.ones(3)})
    path_type = type(checkpoint.newest(tmp_path).path)
    rename = path_type.rename
    monkeypatch.setattr(
        path_type, "rename", lambda *args: go_on.wait(20) and rename(*args)
    )
    saver.checkpoints.save(2, {"x": jnp.ones(3)}, {})
    saver.checkpoints.poll()
    assert saver.checkpoints.latest == tmp_path / "00000001"
    go_on.set()
    saver.checkpoints.wait()
    assert saver.checkpoints.latest == tmp_path / "00000002"


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver = Saver(pathlib.Path("run/checkpoints"))
    state = {"x": jnp.ones(3)}
    saver(1, state)
    _, got, _ = restore_newest(pathlib.Path("run/checkpoints"), state)
    assert_same(got, state)
    saver.checkpoints.close()
