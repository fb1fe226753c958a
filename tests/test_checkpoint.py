"""Checkpoints give the same bits back, or the ones before."""

import errno
import functools
import pathlib
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import checkpoint, metrics


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
    found, problems = checkpoint.newest(tmp_path)
    assert (found.path.name, problems, saver.events) == ("00000007", [], [])
    assert found.info == {"stream": {"count": 3}, "seconds": 0.1}
    assert saver.checkpoints.latest == found.path
    got = checkpoint.restore(found.path, checkpoint.template(state))
    assert_same(got, state)


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
    assert checkpoint.newest(tmp_path)[0].info == {"step": 123_456_789}


def test_an_empty_or_absent_folder_has_none(tmp_path):
    assert checkpoint.newest(tmp_path) == (None, [])
    assert checkpoint.newest(tmp_path / "absent") == (None, [])


def test_what_unfinished_saves_left_is_removed_and_nothing_else(tmp_path, saver):
    saver(1, {"x": jnp.ones(3)})
    saver(2, {"x": jnp.ones(3)})
    (tmp_path / "00000002" / "checksums.json").unlink()  # killed before the end
    (tmp_path / "00000003.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "00000000.deleted").mkdir()
    (tmp_path / "notes").mkdir()
    found, problems = checkpoint.newest(tmp_path)
    assert (found.path.name, problems) == ("00000001", [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "notes"]


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _halve, pathlib.Path.unlink])
def test_damage_to_any_file_falls_back_to_the_checkpoint_before(
    tmp_path, saver, damage
):
    # Orbax itself restores from a flipped bit in its data without complaint.
    state = {"x": jnp.arange(1000.0), "key": jax.random.key(0)}
    saver(1, state)
    saver(2, state)
    good = tmp_path / "good"
    shutil.copytree(tmp_path / "00000002", good)
    files = [p for p in good.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) >= 8
    for file in files:
        name = file.relative_to(good)
        if name.name == "checksums.json" and damage is pathlib.Path.unlink:
            continue  # that is an unfinished save
        shutil.rmtree(tmp_path / "00000002", ignore_errors=True)
        shutil.copytree(good, tmp_path / "00000002")
        damage(tmp_path / "00000002" / name)
        found, (problem,) = checkpoint.newest(tmp_path)
        assert found.path.name == "00000001", name
        assert "00000002 is corrupt" in problem
        assert (tmp_path / "00000002.corrupt").exists()
    assert_same(checkpoint.restore(found.path, checkpoint.template(state)), state)


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
    assert checkpoint.newest(tmp_path)[0].path.name == "00000001"


def test_what_cannot_be_saved_is_refused_at_once(saver):
    with pytest.raises(ValueError, match=r"JSON-able, but .* bytes"):
        saver(1, {"a": jnp.ones(3)}, {"stream": b"binary"})
    with pytest.raises(ValueError, match=r"jax.Array, got ndarray at \['a'\]"):
        saver(1, {"a": np.ones(3)})


def test_a_save_that_fails_is_an_event_and_the_last_good_one_stays(
    tmp_path, saver, monkeypatch
):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    saver(1, {"x": jnp.ones(3)})
    for module, name in ((metrics, "replace_file"), (pathlib.Path, "mkdir")):
        with monkeypatch.context() as patch:
            # The one fails in the background, the other before.
            patch.setattr(module, name, lambda *args, **options: full())
            saver(2, {"x": jnp.ones(3)})
        event, message = saver.events.pop()
        assert event == "checkpoint/failed"
        assert "No space left on device" in message
        assert str(tmp_path / "00000001") in message
        assert [path.name for path in tmp_path.iterdir()] == ["00000001"]
    saver(2, {"x": jnp.ones(3)})
    assert checkpoint.newest(tmp_path)[0].path.name == "00000002"
    assert saver.events == []


def test_saving_runs_in_the_background(tmp_path, saver, monkeypatch):
    # A blocking save would wait for the event that only comes after it.
    go_on = threading.Event()
    write = metrics.replace_file
    monkeypatch.setattr(
        metrics, "replace_file", lambda *args: go_on.wait(20) and write(*args)
    )
    saver.checkpoints.save(1, {"x": jnp.ones(3)}, {})
    saver.checkpoints.poll()
    assert saver.checkpoints.latest is None
    go_on.set()
    saver.checkpoints.wait()
    assert saver.checkpoints.latest == tmp_path / "00000001"


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saver = Saver(pathlib.Path("run/checkpoints"))
    saver(1, {"x": jnp.ones(3)})
    found, _ = checkpoint.newest(pathlib.Path("run/checkpoints"))
    assert_same(
        checkpoint.restore(found.path, checkpoint.template({"x": jnp.ones(3)})),
        {"x": jnp.ones(3)},
    )
    saver.checkpoints.close()
