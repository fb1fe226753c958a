"""A run folder in a bucket (gs://...), with a working copy on the leader's disk.

Files in a bucket cannot be locked, appended to or renamed. So the run works in a folder
on the leader's disk, whose files are copied to the bucket before each checkpoint and at
the end. Checkpoints are written to the bucket directly. A resume, on any machine,
starts from the files in the bucket.

A bucket cannot tell whether the process that owns a run folder is still alive. So a
resume takes the folder over, and the previous owner, if it is alive, stops at its next
checkpoint.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from etils import epath

from rljax import processes
from rljax.run import fault, ownership
from rljax.run.record import Record
from rljax.run.writer import Writer

_CHECKPOINTS = "checkpoints"


class Place(NamedTuple):
    """Where a run writes; the fields are arguments of `open_run` and `train.train`."""

    folder: pathlib.Path
    checkpoint_dir: epath.Path | None = None
    writers: tuple[Writer, ...] = ()


@contextlib.contextmanager
def kept(run_dir: str | os.PathLike, *, resume: bool) -> Iterator[Place]:
    """A context in which a run folder, even one in a bucket, is a folder on the disk.

    Args:
      run_dir: a folder on a file system, which is used as it is, or in a bucket.
      resume: whether to start from the files in the bucket; else it must have none.

    Yields:
      Where the run writes.

    Raises:
      ValueError: if the bucket cannot be read, or holds a run and `resume` is false.
    """
    if "://" not in os.fspath(run_dir):
        yield Place(pathlib.Path(run_dir))
        return
    bucket = epath.Path(run_dir)
    with tempfile.TemporaryDirectory(prefix="rljax-") as home:
        folder = pathlib.Path(home) / bucket.name
        if not processes.leads():
            yield Place(folder, bucket / _CHECKPOINTS)
            return
        copy = Copy(bucket, folder)
        copy.fetch(resume)
        try:
            yield Place(folder, bucket / _CHECKPOINTS, (copy,))
        finally:
            copy.leave()
        print(f"the run is in {bucket}; its working copy {folder} is removed")


class Copy:
    """A `Writer` whose `sync` copies a folder's files to a bucket."""

    def __init__(self, bucket: epath.Path, folder: pathlib.Path):
        self._bucket, self._folder = bucket, folder
        self._seen: dict[str, tuple[int, int]] = {}  # file in the bucket -> size, time
        self._owner: bytes | None = None
        self._lost = False  # whether another run owns the bucket's folder
        self._problem: str | None = None

    def fetch(self, resume: bool) -> None:
        """Copies the files in the bucket, except checkpoints, to the disk."""
        try:
            found = list(_files(self._bucket))
        except ImportError as error:
            raise ValueError(
                f"a run folder in a bucket needs a package that reads buckets, got"
                f" {error} for {self._bucket}; for gs:// pip install gcsfs."
            ) from error
        if found and not resume:
            raise ValueError(
                f"the run folder must be new, but {self._bucket} holds {found[0]};"
                " resume that run (resume=True), or choose another run folder."
            )
        for name in found:
            if name == ownership.FILE:
                print(f"taking over {self._bucket}; a run that still uses it will stop")
                continue
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(self._bucket / name, path)
            self._seen[name] = _stamp(path)

    def write(self, records: Sequence[Record]) -> None:
        """Writes nothing: it raises once if copying failed since the last call.

        The first call makes this process the owner of the folder.
        """
        del records
        if self._owner is None:
            self._owner = (self._folder / ownership.FILE).read_bytes()
            self._try(self._put_owner)
        problem, self._problem = self._problem, None
        if problem is not None:
            raise OSError(problem)

    def sync(self) -> None:
        """Copies files that have changed, and removes those that no longer exist.

        Raises:
          RunFault: if another run has taken the folder over.
        """
        self._try(self._sync)

    def close(self) -> None:
        pass  # files are still written after the training: see `kept`

    def leave(self) -> None:
        """Copies changed files for the last time, and gives up ownership.

        Raises:
          OSError: if the bucket cannot be written.
        """
        if self._owner is None or self._lost:
            return  # the run has not started, or another run owns the folder
        self.sync()
        self._try((self._bucket / ownership.FILE).unlink)
        if self._problem is not None:
            raise OSError(self._problem)

    def _sync(self) -> None:
        owner = self._bucket / ownership.FILE
        if owner.exists() and owner.read_bytes() != self._owner:
            self._lost = True
            raise fault.RunFault(
                f"{self._bucket} was taken over by another run, so this one stops;"
                " its work since its last checkpoint is not kept"
            )
        here = {name: _stamp(self._folder / name) for name in _files(self._folder)}
        here.pop(ownership.FILE, None)
        for name in self._seen.keys() - here.keys():
            (self._bucket / name).unlink(missing_ok=True)
            del self._seen[name]
        for name, stamp in here.items():
            if self._seen.get(name) != stamp:
                _copy(self._folder / name, self._bucket / name)
                self._seen[name] = stamp

    def _put_owner(self) -> None:
        assert self._owner is not None
        (self._bucket / ownership.FILE).write_bytes(self._owner)

    def _try(self, work) -> None:
        """Runs `work`; the next `write` raises its error.

        Libraries have many exception types for an outage, so all of them are caught.
        """
        try:
            work()
        except fault.RunFault:
            raise
        except Exception as error:
            self._problem = f"{self._bucket} was not written: {error}"


def _files(folder: epath.Path | pathlib.Path, inside: str = "") -> Iterator[str]:
    """Relative paths of all files in a folder, except checkpoints and hidden ones."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or (not inside and path.name == _CHECKPOINTS):
            continue
        if path.is_dir():
            yield from _files(path, f"{inside}{path.name}/")
        else:
            yield f"{inside}{path.name}"


def _copy(source: epath.Path | pathlib.Path, target: epath.Path | pathlib.Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 2**24)


def _stamp(path: pathlib.Path) -> tuple[int, int]:
    """Size and time of the last change."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
