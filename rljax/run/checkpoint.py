"""Checkpoints: a whole `TrainState` and the position of the run, saved atomically.

Orbax writes the arrays in the background. When a folder is complete, it is renamed to
the step, and orbax removes the checkpoints that its policy does not keep. A digest of
every leaf is computed on the leaf's devices and saved with the arrays. A restore
compares the leaves with their digests. So it never returns wrong numbers after a kill,
a full disk or bit rot, and a save need not read its checkpoint again.

Folders are `etils.epath` paths, so they may be in a bucket. If there are several
processes, each writes and reads the shards of its devices, in one folder that all see;
only the leader removes and renames folders.
"""

import contextlib
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from rljax import digest, processes
from rljax.run import checkpoint_folder, orbax_options
from rljax.run.checkpoint_folder import Found


class Corrupt(ValueError):
    """A checkpoint does not hold what was saved in it."""


class Checkpoints:
    """Saves checkpoints in the background, one at a time, and keeps the newest.

    Args:
      directory: the folder of all checkpoints; made if missing.
      keep: how many to keep, at least 1.
      report: called as report(event, message), in the thread that calls the methods
        here. A failed save is the event `checkpoint/failed`; earlier checkpoints stay
        as they are.
      latest: the newest checkpoint that exists already, if any.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        *,
        keep: int,
        report: Callable[[str, str], None],
        latest: epath.Path | None = None,
    ):
        self._directory = epath.Path(directory).absolute()  # as orbax requires
        self._keep = keep
        self._report = report
        self._saving: epath.Path | None = None
        self._quiet = contextlib.ExitStack()
        self._quiet.enter_context(orbax_options.quiet())
        self.latest = latest

    @functools.cached_property
    def _orbax(self):
        from orbax.checkpoint import v1 as orbax

        keep = orbax.training.preservation_policies.LatestN(self._keep)
        return orbax.training.Checkpointer(
            self._directory,
            preservation_policy=keep,
            step_name_format=checkpoint_folder.Names(),
            lightweight_initialize=True,
        )

    def save(self, step: int, state: Any, info: dict[str, Any]) -> None:
        """Starts a save; returns once the state has been copied from the device.

        Args:
          step: names the checkpoint; an existing one of the same step is replaced.
          state: a pytree of `jax.Array`.
          info: saved with the state; must be JSON-able.

        Raises:
          ValueError: if a leaf is not a `jax.Array`, or `info` is not JSON-able.
        """
        self.wait()
        path = self._directory / checkpoint_folder.Names().build_name(step)
        beside = checkpoint_folder.sealed(
            {
                "step": step,
                "info": _json(info),
                "leaves": _describe(template(state)),
                "digests": _digests(state),
            }
        )
        try:
            self._make_room(path)
            # The checkpointer keeps the context that it is made in.
            with orbax_options.saving(state):
                self._orbax.save_checkpointables_async(
                    step,
                    {"state": state},
                    force=True,
                    overwrite=True,
                    custom_metadata=beside,
                )
        except OSError as error:
            if processes.count() > 1:  # the other processes are waiting inside orbax
                raise
            self._failed(path, str(error))
            return
        self._saving = path

    def poll(self) -> None:
        """Finishes the running save if it has ended.

        With several processes it does nothing: they would see the end at different
        steps. They call `wait` instead.
        """
        if self._saving is None or processes.count() > 1:
            return
        if not self._orbax.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the running save and reports if it failed."""
        if self._saving is None:
            return
        path, self._saving = self._saving, None
        problem = None
        try:
            self._orbax.wait()
        except Exception as error:  # tensorstore reports a full disk as a ValueError
            problem = str(error)
        problems = [x for x in processes.gathered("a save", problem) if x is not None]
        if problems:
            complete = lambda: checkpoint_folder.saved(path) is not None  # noqa: E731
            if not processes.from_leader("a save's end", complete):
                self._failed(path, problems[0])
                return
            # The checkpoint is complete; only the removal of an older one has failed.
            self._orbax.reload()
        self.latest = path

    def close(self) -> None:
        """Waits for the running save, unless one of several processes ends alone."""
        alone = processes.count() == 1
        if alone or self._saving is None:
            self.wait()
            if "_orbax" in self.__dict__:
                self._orbax.close()
        self._quiet.close()

    def _make_room(self, path: epath.Path) -> None:
        """The leader removes unfinished saves; raises if a foreign folder is there."""
        if processes.leads():
            if path.exists() and not checkpoint_folder.is_ours(path):
                raise FileExistsError("it exists and is not of this run; move it away")
            checkpoint_folder.remove_unfinished(self._directory)
        processes.barrier("room for a checkpoint")

    def _failed(self, path: epath.Path, problem: str) -> None:
        if processes.leads():
            with contextlib.suppress(OSError):
                checkpoint_folder.remove_unfinished(self._directory)
        if "_orbax" in self.__dict__:
            self._orbax.reload()
        kept = "there is none yet" if self.latest is None else f"it is {self.latest}"
        message = " ".join(problem.split())[:300]
        self._report(
            "checkpoint/failed",
            f"could not write to {path}: {message}; the last good checkpoint is kept"
            f" ({kept}) and training continues",
        )


def newest(directory: epath.PathLike) -> Found | None:
    """The newest complete checkpoint of a run, or None; does not read the arrays."""

    def look() -> list[Any] | None:
        found = map(_found, checkpoint_folder.ours(epath.Path(directory)))
        one = next((one for one in found if one is not None), None)
        return None if one is None else [str(one.path), one.info]

    found = processes.from_leader("the newest checkpoint", look)
    return None if found is None else Found(epath.Path(found[0]), found[1])


def restore_newest(
    directory: epath.PathLike, like: Callable[[Found], Any]
) -> tuple[Found | None, Any, list[str]]:
    """Restores the newest intact checkpoint of a run.

    It first removes the remains of unfinished saves. If newer checkpoints are corrupt,
    it renames them to `<step>.corrupt`.

    Args:
      directory: of the checkpoints; no other run may use it.
      like: found -> the template that its state is restored to.

    Returns:
      The checkpoint, its state, and a message for each checkpoint that was renamed;
      (None, None, []) if nothing was saved yet.

    Raises:
      ValueError: if there are checkpoints but none is intact, or as `restore` and
        `like` raise.
      OSError: if a checkpoint cannot be read now.
    """
    directory = epath.Path(directory)
    corrupt: dict[epath.Path, str] = {}
    for path in processes.from_leader("checkpoints", lambda: _cleaned(directory)):
        path = epath.Path(path)
        found = _found(path)
        try:
            if found is None:
                raise Corrupt("its metadata has changed since it was saved")
            state = restore(path, like(found))
        except Corrupt as error:
            corrupt[path] = str(error)
            continue
        if not processes.leads():
            return found, state, []
        return found, state, [_put_aside(*one) for one in corrupt.items()]
    others = checkpoint_folder.others(directory)
    unread = dict.fromkeys(others, "belongs to another run or version") | corrupt
    if unread:
        why = "; ".join(f"{path.name}: {problem}" for path, problem in unread.items())
        raise ValueError(
            f"one of the checkpoints in {directory} must be whole, but none is ({why})."
            " Bring back a copy, or move them away to start from the first step."
        )
    return None, None, []


def template(state: Any) -> Any:
    """What `restore` needs to know of a state: a pytree of `jax.ShapeDtypeStruct`.

    Uncommitted arrays get sharding None and are restored uncommitted; a scalar
    committed to device 0 could not be combined with parameters on a mesh.

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


def restore(path: epath.PathLike, like: Any) -> Any:
    """Restores the saved state, bit for bit.

    Args:
      path: the folder of the checkpoint.
      like: the `template` of a state of the same structure; it gives the shardings.

    Returns:
      The state.

    Raises:
      ValueError: if structure, shapes or dtypes differ from the saved ones; the message
        names the leaves.
      Corrupt: if the files do not hold what was saved.
      OSError: if the files cannot be read now.
    """
    from orbax.checkpoint import v1 as orbax

    path = epath.Path(path).absolute()  # as orbax requires
    beside = checkpoint_folder.saved(path)
    if beside is None:
        raise Corrupt("its metadata has changed since it was saved")
    _require_same(path, beside["leaves"], _describe(like))
    default = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda x: x.update(sharding=x.sharding or default), like)
    loaded, problem = None, None
    try:
        loaded = orbax.load_checkpointables(path, {"state": placed})["state"]
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise  # the machine's fault, not the file's
    except Exception as error:  # orbax and tensorstore raise many types for bad files
        checkpoint_folder.require_readable(path)
        problem = " ".join(str(error).split())[:200]
    problems = [x for x in processes.gathered("a restore", problem) if x is not None]
    if problems:  # every process raises if one of them found a problem
        raise Corrupt(problems[0])
    if _describe(loaded) != beside["leaves"]:  # such as a PRNG key read as numbers
        raise Corrupt("its leaves have changed since it was saved")
    changed = [
        leaf
        for leaf, number in _digests(loaded).items()
        if number != beside["digests"][leaf]
    ]
    if changed:
        raise Corrupt(f"{changed[0]} has changed since it was saved")
    return jax.tree.map(
        lambda x, want: x if want.sharding else _uncommitted(x), loaded, like
    )


def _uncommitted(x: jax.Array) -> jax.Array:
    """An uncommitted copy, which JAX may move to the devices of other arguments."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = _uncommitted(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jnp.array(np.asarray(x))


def _require_same(path: epath.Path, saved: dict, wanted: dict) -> None:
    differing = [
        f"{leaf}: saved {saved.get(leaf, 'nothing')}, now {wanted.get(leaf, 'nothing')}"
        for leaf in sorted({*saved, *wanted})
        if saved.get(leaf) != wanted.get(leaf)
    ]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise ValueError(
            f"the state must have the structure that {path} was saved with, but differs"
            f" in {'; '.join(differing[:5])}{more}. Restore the program or start a new"
            " run in another folder."
        )


def _describe(state: Any) -> dict[str, str]:
    """Tree path -> dtype and shape of each leaf."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(state)
    }


def _digests(state: Any) -> dict[str, int]:
    """Tree path -> digest of each leaf."""
    return {leaf: found.digest for leaf, found in digest.examine(state).items()}


def _json(info: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(info))
    except TypeError as error:
        raise ValueError(
            f"the info in a checkpoint must be JSON-able, but {error}; let the stream's"
            " get_state() return numbers, strings, lists and dicts."
        ) from error


def _cleaned(directory: epath.Path) -> list[str]:
    """Removes the remains of unfinished saves; returns this run's, newest first."""
    checkpoint_folder.remove_unfinished(directory)
    return [str(path) for path in checkpoint_folder.ours(directory)]


def _found(path: epath.Path) -> Found | None:
    """The checkpoint in a folder; None if it is incomplete or its metadata changed."""
    beside = checkpoint_folder.saved(path)
    return None if beside is None else Found(path, beside["info"])


def _put_aside(path: epath.Path, problem: str) -> str:
    aside = checkpoint_folder.put_aside(path)
    return f"{path} is corrupt ({problem}); renamed to {aside.name}"
