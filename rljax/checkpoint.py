"""Checkpoints: a whole `TrainState` and where the run stands, atomically together.

Orbax writes the arrays in the background, into a folder that gets its name, the step,
when it is complete. Then a file of checksums is put beside them: a checkpoint is valid
if it has that file and its files agree with it. So neither a kill nor a full disk nor
a decaying one leaves a checkpoint that restores to something else.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable
from concurrent import futures
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import metrics

_CHECKSUMS = "checksums.json"
_ASIDE, _DELETED = ".corrupt", ".deleted"


class Found(NamedTuple):
    """A valid checkpoint: its folder and what was saved beside the state."""

    path: pathlib.Path
    info: dict[str, Any]


class Checkpoints:
    """Saves checkpoints in the background, one at a time, and keeps the newest.

    Args:
      directory: the folder of all checkpoints; made if missing.
      keep: how many to keep, at least 1.
      report: (event, message), called from the thread that calls the methods here. A
        save that fails is the event `checkpoint/failed`; the others stay as they are.
      latest: the newest checkpoint that exists already.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int,
        report: Callable[[str, str], None],
        latest: pathlib.Path | None = None,
    ):
        self._directory = directory
        self._keep = keep
        self._report = report
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint")
        self._saving: futures.Future | None = None
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(_quiet_orbax())
        self.latest = latest

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Starts to save; returns once the state has been copied from the device.

        Args:
          step: names the checkpoint; one of the same name is replaced.
          state: a pytree of `jax.Array`.
          info: what else to save, JSON-able.

        Raises:
          ValueError: if they are not.
        """
        from orbax.checkpoint import v1 as orbax

        self.wait()
        path = self._directory / f"{step:08d}"
        info = {"info": _json(info), "leaves": _describe(template(state))}
        try:
            _remove_unfinished(self._directory)
            _remove(path)
            self._directory.mkdir(parents=True, exist_ok=True)
            writing = orbax.save_checkpointables_async(
                path.absolute(), {"state": state}, custom_metadata=info
            )
        except OSError as error:
            self._failed(path, error)
            return
        self._saving = self._thread.submit(_complete, writing, path, self._keep)

    def poll(self) -> None:
        """Reports on the running save if it has ended."""
        if self._saving is not None and self._saving.done():
            self.wait()

    def wait(self) -> None:
        """Waits for the running save and reports if it failed."""
        if self._saving is None:
            return
        saving, self._saving = self._saving, None
        try:
            self.latest = saving.result()
        except Exception as error:  # tensorstore has a full disk as a ValueError
            self._failed(self._directory, error)

    def close(self) -> None:
        self.wait()
        self._thread.shutdown()
        self._quiet.close()

    def _failed(self, path: pathlib.Path, error: Exception) -> None:
        _remove_unfinished(self._directory)
        kept = "there is none yet" if self.latest is None else f"it is {self.latest}"
        message = " ".join(str(error).split())[:300]
        self._report(
            "checkpoint/failed",
            f"could not write to {path}: {message}; the last good checkpoint is kept"
            f" ({kept}) and training goes on",
        )


def newest(directory: pathlib.Path) -> tuple[Found | None, list[str]]:
    """The newest valid checkpoint of a folder, which must not be in use.

    What unfinished saves left is removed. A checkpoint whose files have changed since
    it was saved is put aside, under the name `<step>.corrupt`.

    Returns:
      The checkpoint or None, and a message for each that was put aside.
    """
    _remove_unfinished(directory)
    problems = []
    for path in reversed(_complete_ones(directory)):
        problem = _check(path)
        if problem is None:
            return Found(path, _metadata(path)["info"]), problems
        aside = path.with_name(path.name + _ASIDE)
        _remove(aside)
        path.rename(aside)
        problems.append(f"{path} is corrupt ({problem}); put aside as {aside.name}")
    return None, problems


def template(state: Any) -> Any:
    """What `restore` must know of a state, without holding its memory.

    A pytree of `jax.ShapeDtypeStruct`; the sharding is None where an array is not
    bound to a device: it must not be so after a restore either, for a scalar bound to
    device 0 cannot meet parameters on a mesh.

    Raises:
      ValueError: if a leaf is not a `jax.Array`.
    """
    for path, leaf in jax.tree.leaves_with_path(state):
        if not isinstance(leaf, jax.Array):
            raise ValueError(
                "every leaf of the state must be a jax.Array, got"
                f" {type(leaf).__name__} at {jax.tree_util.keystr(path)}; wrap it in"
                " jnp.asarray."
            )
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=x.sharding if x.committed else None
        ),
        state,
    )


def restore(path: pathlib.Path, like: Any) -> Any:
    """The saved state, bit for bit.

    Args:
      like: the template of a state of the same structure; the result is placed so.

    Raises:
      ValueError: if structure, shapes or dtypes differ from the saved ones, with the
        leaves that do.
    """
    from orbax.checkpoint import v1 as orbax

    saved, wanted = _metadata(path)["leaves"], _describe(like)
    differing = [
        f"{leaf}: saved {saved.get(leaf, 'nothing')}, now {wanted.get(leaf, 'nothing')}"
        for leaf in sorted({*saved, *wanted})
        if saved.get(leaf) != wanted.get(leaf)
    ]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"the state must be built as when {path} was saved, but differs in"
            f" {'; '.join(differing[:5])}{more}. Restore the program or start a new run"
            " with another --run-dir."
        )
    anywhere = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda x: x.update(sharding=x.sharding or anywhere), like)
    loaded = orbax.load_checkpointables(path.absolute(), {"state": placed})
    return jax.tree.map(
        lambda x, want: x if want.sharding else _unbound(x), loaded["state"], like
    )


def _unbound(x: jax.Array) -> jax.Array:
    """The same array, free to go where others are."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _unbound(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jnp.array(np.asarray(x))


def _describe(state: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _json(info: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(info))
    except TypeError as error:
        raise ValueError(
            f"what a checkpoint holds beside the state must be JSON-able, but {error};"
            " let the stream's get_state() return numbers, strings, lists and dicts."
        ) from error


def _metadata(path: pathlib.Path) -> dict[str, Any]:
    from orbax.checkpoint import v1 as orbax

    return orbax.checkpointables_metadata(path.absolute()).custom_metadata


def _complete(writing, path: pathlib.Path, keep: int) -> pathlib.Path:
    """Runs in the background: waits for orbax, adds checksums, removes the oldest."""
    writing.result()
    text = json.dumps(_checksums(path)).encode()
    metrics.replace_file(path / _CHECKSUMS, text)
    with contextlib.suppress(OSError):  # the new one is good all the same
        for old in _complete_ones(path.parent)[:-keep]:
            _remove(old)
    return path


def _complete_ones(directory: pathlib.Path) -> list[pathlib.Path]:
    """Folders of saves that were completed, oldest first."""
    found = [p.parent for p in directory.glob(f"*/{_CHECKSUMS}")]
    return sorted((p for p in found if p.name.isdigit()), key=lambda p: int(p.name))


def _checksums(path: pathlib.Path) -> dict[str, str]:
    sums = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _CHECKSUMS:
            with open(file, "rb") as data:
                digest = hashlib.file_digest(data, "sha256")
            sums[file.relative_to(path).as_posix()] = digest.hexdigest()
    return sums


def _check(path: pathlib.Path) -> str | None:
    """What is wrong with a complete checkpoint, or None."""
    try:
        saved, found = json.loads((path / _CHECKSUMS).read_bytes()), _checksums(path)
    except (OSError, ValueError) as error:
        return str(error)
    changed = [name for name in saved if saved[name] != found.get(name)]
    return f"{changed[0]} has changed since" if changed else None


def _remove(path: pathlib.Path) -> None:
    """Removes a folder if it is there; a kill in between leaves no half of it."""
    if path.exists():
        deleted = path.with_name(path.name + _DELETED)
        shutil.rmtree(deleted, ignore_errors=True)
        os.replace(path, deleted)
        shutil.rmtree(deleted)


def _remove_unfinished(directory: pathlib.Path) -> None:
    for path in directory.glob("[0-9]*"):
        complete = path.name.isdigit() and (path / _CHECKSUMS).exists()
        if not complete and path.suffix != _ASIDE:
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _quiet_orbax():
    """Orbax logs a failed save with hundreds of lines; the event says it in one."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
