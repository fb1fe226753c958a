"""A run folder in a bucket (gs://...), of which the run works on a copy.

In a bucket nothing can be locked, appended to or renamed. So a run has a folder on the
leader's disk, whose files are copied into the bucket before each checkpoint and at the
end. Checkpoints are written to the bucket straight. A resume, on whatever machine,
begins with what the bucket holds.

A bucket cannot say whether the process that owns a run folder is still alive. So a
resume takes the folder over, and an owner that lives stops at its next checkpoint.
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
    """Where a run writes: arguments of `open_run` and `train.train`."""

    folder: pathlib.Path
    checkpoint_dir: epath.Path | None = None
    writers: tuple[Writer, ...] = ()


@contextlib.contextmanager
def kept(run_dir: str | os.PathLike, *, resume: bool) -> Iterator[Place]:
    """Inside the context, a run folder that may be in a bucket has a copy on the disk.

    Args:
      run_dir: a folder on a file system, which is its own copy, or in a bucket.
      resume: whether to begin with what the bucket holds; else it must hold nothing.

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
        print(f"{folder} was a copy; it is kept as {bucket}")


class Copy:
    """Copies a folder's files into a bucket; a `Writer` that is synced."""

    def __init__(self, bucket: epath.Path, folder: pathlib.Path):
        self._bucket, self._folder = bucket, folder
        self._seen: dict[str, tuple[int, int]] = {}  # of each file there, size and time
        self._owner: bytes | None = None
        self._lost = False  # to another run
        self._problem: str | None = None

    def fetch(self, resume: bool) -> None:
        """Brings what the bucket holds, but for checkpoints, to the disk."""
        try:
            found = list(_files(self._bucket))
        except ImportError as error:
            raise ValueError(
                f"a run folder in a bucket needs a package that reads it, got {error}"
                f" for {self._bucket}; for gs:// pip install gcsfs."
            ) from error
        if found and not resume:
            raise ValueError(
                f"the run folder must be new, but {self._bucket} holds {found[0]};"
                " resume that run (resume=True), or choose another run folder."
            )
        for name in found:
            if name == ownership.FILE:
                print(f"{self._bucket} is taken over; what still runs there will stop")
                continue
            path = self._folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _copy(self._bucket / name, path)
            self._seen[name] = _stamp(path)

    def write(self, records: Sequence[Record]) -> None:
        """Tells of an outage, once; the first call makes this process the owner."""
        del records
        if self._owner is None:
            self._owner = (self._folder / ownership.FILE).read_bytes()
            self._try(self._put_owner)
        problem, self._problem = self._problem, None
        if problem is not None:
            raise OSError(problem)

    def sync(self) -> None:
        """Copies the files that have changed; those that are gone are removed.

        Raises:
          RunFault: if another run has taken the folder over.
        """
        self._try(self._sync)

    def close(self) -> None:
        pass  # more is written after the training: see `kept`

    def leave(self) -> None:
        """Copies what is new for the last time; the folder then has no owner.

        Raises:
          OSError: if that was not possible.
        """
        if self._owner is None or self._lost:
            return  # nothing was begun, or it is another's
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
                " nothing of it is kept since its last checkpoint"
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
        """A network has many names for an outage; it is told at the next record."""
        try:
            work()
        except fault.RunFault:
            raise
        except Exception as error:
            self._problem = f"{self._bucket} was not written: {error}"


def _files(folder: epath.Path | pathlib.Path, inside: str = "") -> Iterator[str]:
    """The paths of all files below a folder, but for checkpoints and hidden ones."""
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
    found = path.stat()
    return found.st_size, found.st_mtime_ns
