"""Who may write in a run folder: one process at a time, on all machines if possible.

The owner holds an exclusive `flock` on the file `run.lock`, which is made once and
never removed. The kernel grants the lock to one process and takes it back when that
process ends, however it ends: after a kill -9 the folder is free.

How far it holds on network file systems:
- NFS: between all machines, because Linux turns it into a lock of the server. After a
  crash of the owner's whole machine the server frees the lock when its lease ends, a
  minute or two later (NFS 3: when the machine is back). Mounted with `nolock` or
  `local_lock`, it holds only between processes of one machine.
- Lustre: between all machines if mounted with `flock`; else it is refused.
- SMB: between all machines, from Linux 5.5 on.
- FUSE mounts of buckets (gcsfuse, s3fs): only between processes of one machine.
Where locks are refused, a warning says so. Where they do not reach, a second owner is
let in. The first one stops at its next checkpoint, when the file names another.
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

# What this process owns: folder -> (descriptor of its lock file, what it wrote there).
_held: dict[str, tuple[int, bytes]] = {}


@contextlib.contextmanager
def owned(run_dir: str | os.PathLike) -> Iterator[None]:
    """Inside the context, this process alone owns a run folder; made if missing.

    Raises:
      ValueError: if another owns it, with its process id and host, or this one does.
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
        if key in _held:  # not after a fork
            os.close(_held.pop(key)[0])


@contextlib.contextmanager
def ensured(run_dir: str | os.PathLike) -> Iterator[None]:
    """As `owned`, and allowed inside `owned` of the same folder."""
    with contextlib.ExitStack() as stack:
        if os.path.realpath(run_dir) not in _held:
            stack.enter_context(owned(run_dir))
        yield


def taken_over_by(run_dir: str | os.PathLike) -> str | None:
    """The process that took the folder although this one owns it, or None.

    That can happen where the lock does not reach.
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
      ValueError: if it is in a bucket, where nothing can be locked or appended to.
    """
    if "://" in os.fspath(run_dir):
        raise ValueError(
            "a run folder must be on a file system, as it is locked and appended to,"
            f" got {os.fspath(run_dir)}; put only the checkpoints there: pass it as"
            " checkpoint_dir of train.train."
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
                f"the file system of {run_dir} locks no files ({error.strerror}):"
                " nothing keeps a second run out of this folder.",
                stacklevel=4,
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                break
        os.close(lock)  # somebody removed the file before it was locked
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
        return "another process"  # that has not written its name yet


def _let_go() -> None:
    """A forked child would keep the lock of a parent that was killed."""
    for lock, _ in _held.values():
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
