"""Ownership of a run folder: only one process at a time may write in it.

The owner holds an exclusive `flock` on the file `run.lock`, which is never removed. The
kernel grants the lock to one process and releases it when that process ends, even by
kill -9.

The lock's reach on network file systems:
- NFS: all machines, because Linux turns it into a lock of the server. After a crash of
  the owner's machine, the server frees the lock when its lease ends, a minute or two
  later (NFS 3: when the machine is back). If it is mounted with `nolock` or
  `local_lock`: one machine.
- Lustre: all machines if it is mounted with `flock`; otherwise locks are refused.
- SMB: all machines, from Linux 5.5 on.
- FUSE mounts of buckets (gcsfuse, s3fs): one machine.
If locks are refused, a warning says so. Beyond the lock's reach, a second owner is not
stopped; then the first one finds another name in the file at its next checkpoint, and
stops.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import secrets
import socket
import time
import warnings
from collections.abc import Iterator

FILE = "run.lock"

# Folders that this process owns -> (descriptor of the lock file, its content).
_held: dict[str, tuple[int, bytes]] = {}


@contextlib.contextmanager
def owned(run_dir: str | os.PathLike) -> Iterator[None]:
    """A context in which this process alone owns a run folder; made if missing.

    Raises:
      ValueError: if a process, this one included, owns it already; the message names
        its process id and host.
    """
    run_dir = local(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    key = os.path.realpath(run_dir)
    if key in _held:
        raise _in_use(run_dir, _held[key][1])
    _held[key] = _take(run_dir)
    try:
        yield
    finally:
        if key in _held:  # false in a forked child: see `_release_in_child`
            os.close(_held.pop(key)[0])


@contextlib.contextmanager
def ensured(run_dir: str | os.PathLike) -> Iterator[None]:
    """Like `owned`, but may be nested inside `owned` of the same folder."""
    with contextlib.ExitStack() as stack:
        if os.path.realpath(run_dir) not in _held:
            stack.enter_context(owned(run_dir))
        yield


def taken_over_by(run_dir: str | os.PathLike) -> str | None:
    """The process that has taken over a folder of this process, or None.

    This can happen beyond the lock's reach.
    """
    _, mine = _held[os.path.realpath(run_dir)]
    try:
        found = (pathlib.Path(run_dir) / FILE).read_bytes()
    except OSError:
        found = b""
    return None if found == mine else _name(found)


def local(run_dir: str | os.PathLike) -> pathlib.Path:
    """The path of a run folder.

    Raises:
      ValueError: if it is in a bucket, where files cannot be locked or appended to.
    """
    if "://" in os.fspath(run_dir):
        raise ValueError(
            "a run folder must be on a file system, because files there are locked and"
            f" appended to, got {os.fspath(run_dir)}; put only checkpoints into the"
            " bucket: pass it as checkpoint_dir of train.train."
        )
    return pathlib.Path(run_dir)


def _take(run_dir: pathlib.Path) -> tuple[int, bytes]:
    """Locks the file and writes this process into it."""
    path = run_dir / FILE
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(lock, 4096, 0)
            os.close(lock)
            raise _in_use(run_dir, owner) from None
        except OSError as error:
            warnings.warn(
                f"the file system of {run_dir} cannot lock files ({error.strerror}):"
                " nothing prevents a second run in this folder.",
                stacklevel=4,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                break
        os.close(lock)  # the file was removed before it was locked: try again
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "token": secrets.token_hex(8),
    }
    text = json.dumps(owner).encode() + b"\n"
    os.pwrite(lock, text, 0)
    os.ftruncate(lock, len(text))
    return lock, text


def _in_use(run_dir: pathlib.Path, owner: bytes) -> ValueError:
    return ValueError(
        f"a run folder must have one owner, but {run_dir} is in use by {_name(owner)};"
        " wait for its end, stop it, or choose another run folder."
    )


def _name(owner: bytes) -> str:
    try:
        who = json.loads(owner)
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, TypeError, KeyError):
        return "another process"  # one that has not written its name yet


def _release_in_child() -> None:
    """Closes the locks in a forked child, which would keep them after its parent."""
    for lock, _ in _held.values():
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
