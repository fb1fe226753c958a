"""The processes of a `pool.Pool`: a fork server, workers, and calls.

The trainer starts one server by this file's path, so that it imports little (no JAX).
The server loads the function once and forks the workers. Each worker forks a process
for every call. When the call has answered, or its time is over, the worker kills all
processes that are left of it. So a call finds what the function's module has set up,
and its own changes (built-ins, signal handlers, limits, open files) end with it.

Answers are records of a fixed size: the reader knows how much is missing, and a pipe
takes a record in one piece. Answers are not pickled, so a call cannot make the trainer
execute code.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import spawn
from typing import NamedTuple, NoReturn

READY = b"r"  # the server can start workers
BROKEN = b"b"  # the server cannot; text: why
STARTED = b"s"  # number: process id of a new worker
NUMBER = b"n"  # number: the result of a call
ERROR = b"e"  # text: what a call, or a start, raised
TIMEOUT = b"t"  # a call took too long
DIED = b"d"  # text: how a call without an answer ended

_RECORD = struct.Struct("<cd503s")  # kind, number, UTF-8 text
SIZE = _RECORD.size  # 512 bytes, the least that POSIX lets a pipe take in one piece
_LENGTH = struct.Struct("<Q")
_POLL_S = 0.1
_END_S = 1.0  # longest wait for a kill; uninterruptible system calls may take longer
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER


class Work(NamedTuple):
    """What the server needs to know.

    setting: preparation data of `multiprocessing.spawn`: the trainer's path, folder and
      main module.
    fn: the pickled function.
    timeout_s: limit of one call, seconds.
    memory_bytes: address space that a call may take beyond what it starts with; None:
      no limit.
    """

    setting: dict
    fn: bytes
    timeout_s: float
    memory_bytes: int | None


def pack(kind: bytes, number: float = 0.0, text: str = "") -> bytes:
    """A record; text that is too long is cut."""
    return _RECORD.pack(kind, number, text[:SIZE].encode(errors="replace"))


def unpack(record: bytes) -> tuple[bytes, float, str]:
    """Kind, number and text of any `SIZE` bytes."""
    kind, number, text = _RECORD.unpack(record)
    return kind, number, text.rstrip(b"\0").decode(errors="replace")


def send(line: socket.socket, data: bytes) -> None:
    """Sends bytes of any length for `receive`."""
    line.sendall(_LENGTH.pack(len(data)) + data)


def receive(line: socket.socket) -> bytes:
    """Receives what `send` sent; raises EOFError if the other side is gone."""
    return receive_exactly(line, _LENGTH.unpack(receive_exactly(line, 8))[0])


def receive_exactly(line: socket.socket, size: int) -> bytes:
    """Receives `size` bytes; raises EOFError if the other side is gone."""
    data = bytearray()
    while len(data) < size:
        piece = line.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other side of the line is gone")
        data += piece
    return bytes(data)


def serve(control: socket.socket) -> None:
    """Starts workers until the trainer closes the socket; then ends all of them."""
    _become_subreaper()
    work = Work(*pickle.loads(receive(control)))
    try:
        call = _load(work)
    except BaseException as error:
        control.sendall(pack(BROKEN, text=_text(error)))
        return
    _settle()
    helpers = _children()  # processes that the function's module started for all calls
    workers: set[int] = set()
    try:
        control.sendall(pack(READY))
        while (start := _request(control)) is not None:
            instead_of, line = start
            if instead_of in workers:
                os.kill(instead_of, signal.SIGKILL)
                workers.remove(instead_of)
            workers -= end_children(but=workers | helpers).keys()
            with line:
                try:
                    process = _fork(work_on, line, call, work, control)
                except OSError as error:  # no memory or no process left
                    control.sendall(pack(ERROR, text=_text(error)))
                    continue
            workers.add(process)
            control.sendall(pack(STARTED, process))
    finally:
        give_up = time.monotonic() + _END_S
        while workers and time.monotonic() < give_up:  # their sockets are closed, too
            workers -= end_children(but=workers).keys()
            time.sleep(0.001)
        end_children()


def _request(control: socket.socket) -> tuple[int, socket.socket] | None:
    """(worker to replace or 0, socket of the new worker); None at the end."""
    instead_of, lines, _, _ = socket.recv_fds(control, 8, 1)
    if not lines:
        return None
    return int.from_bytes(instead_of, "little"), socket.socket(fileno=lines[0])


def _load(work: Work) -> Callable:
    # As in a child of `multiprocessing`: a script without `if __name__ == "__main__":`
    # must not start processes while it is imported.
    process = multiprocessing.current_process()
    process._inheriting = True  # pyrefly: ignore
    try:
        spawn.prepare(work.setting)
        return pickle.loads(work.fn)
    finally:
        del process._inheriting  # pyrefly: ignore


def _settle() -> None:
    """Undoes side effects of the import that would disturb forked processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # only the trainer ends the server
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Python warns at every fork if a library has started threads.
    warnings.filterwarnings("ignore", r"This process .* is multi-threaded")
    _flush()
    gc.collect()
    gc.freeze()  # a collection would copy the pages that forks share


def _fork(run: Callable, *args) -> int:
    """Forks a process that calls `run(*args)` and then exits; returns its id."""
    leave = os._exit
    process = os.fork()
    if process == 0:
        try:
            run(*args)
        finally:
            leave(1)
    return process


def work_on(
    line: socket.socket, call: Callable, work: Work, control: socket.socket
) -> None:
    """A worker: answers each pickled tuple of arguments with a record."""
    control.close()
    _become_subreaper()
    # If the machine runs out of memory, Linux then kills a worker or a call, which
    # inherits this, and not the trainer.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    while True:  # until the trainer closes the socket
        arguments = receive(line)
        try:
            answer = _supervise(line, call, arguments, work)
        except OSError as error:  # no memory or no process left
            answer = pack(DIED, text=_text(error))
        line.sendall(answer)


def _supervise(
    line: socket.socket, call: Callable, arguments: bytes, work: Work
) -> bytes:
    """Runs a call in a process of its own, then kills all that is left of it."""
    ours, theirs = os.pipe()
    try:
        deadline = time.monotonic() + work.timeout_s
        try:
            process = _fork(
                _call, theirs, call, arguments, work.memory_bytes, (ours, line.fileno())
            )
        finally:
            os.close(theirs)
        try:
            answer = _await(ours, process, line, deadline)
        finally:
            code = _end(process)
    finally:
        os.close(ours)
    return answer or pack(DIED, text=f"exit code {code} without an answer")


def _await(pipe: int, process: int, line: socket.socket, deadline: float) -> bytes:
    """The call's record, that of a timeout, or b"" if the call ended without one."""
    answer, ended = b"", False
    while len(answer) < SIZE:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return pack(TIMEOUT)
        ready, _, _ = select.select([pipe, line], [], [], min(left_s, _POLL_S))
        if line in ready:
            raise EOFError("the trainer is gone")
        if pipe in ready:
            piece = os.read(pipe, SIZE - len(answer))
            if not piece:
                return b""
            answer += piece
        elif ended:
            return b""
        else:  # a process that the call forked may keep the pipe open after its end
            ended = _has_ended(process)
    return answer


def _has_ended(process: int) -> bool:
    """Whether a child has ended; it must still be waited for."""
    if sys.platform == "darwin":  # has no `waitid`: wait for the timeout instead
        return False
    how = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process, how) is not None


def _end(process: int) -> int:
    """Kills a call and all processes it started; returns its exit code."""
    for kill in (os.killpg, os.kill):  # the call may not have a group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    end_children()
    return os.waitstatus_to_exitcode(status)


def end_children(but: frozenset | set = frozenset()) -> dict[int, int]:
    """Kills all descendants of this process except `but`.

    On Linux orphaned descendants become children of this process, as it is a subreaper.
    Elsewhere only its direct children are killed.

    Returns:
      The exit codes of children that have ended, those in `but` included, by process
      id.
    """
    ended = {}
    give_up = time.monotonic() + _END_S
    while time.monotonic() < give_up:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if process:
            ended[process] = os.waitstatus_to_exitcode(status)
            continue
        alive = _children() - but
        if not alive:
            break
        for process in alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.001)
    return ended


def _children() -> set[int]:
    """The children of this process that are not zombies; empty without /proc."""
    found, me = set(), str(os.getpid()).encode()
    if not os.path.isdir("/proc"):
        return found
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            if parent == me and state != b"Z":
                found.add(int(name))
    return found


def _become_subreaper() -> None:
    """Makes orphaned descendants become children of this process (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def _call(
    pipe: int,
    call: Callable,
    arguments: bytes,
    memory_bytes: int | None,
    inherited: tuple[int, ...],
) -> NoReturn:
    """The program of a call's process: writes the call's record and exits.

    Args:
      inherited: open files of the worker, which the call must not have.
    """
    leave, process_id, write = os._exit, os.getpid, os.write  # `call` may replace them
    me = process_id()
    code = 0
    try:
        for file in inherited:
            os.close(file)
        _prepare(memory_bytes)
        record = pack(NUMBER, _number(call(*pickle.loads(arguments))))
    except BaseException as error:  # sys.exit() in `call` is an error of the call, too
        code = error.code if isinstance(error, SystemExit) else 1
        record = pack(ERROR, text=_text(error))
    if process_id() != me:  # a process that `call` forked must not answer for it
        leave(code if isinstance(code, int) else int(code is not None))
    _flush()
    write(pipe, record)
    leave(0)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _prepare(memory_bytes: int | None) -> None:
    os.setsid()  # a group of its own, so that it can be killed with its children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if memory_bytes is not None:
        _limit_memory(memory_bytes)


def _limit_memory(extra: int) -> None:
    import resource  # absent on Windows, where the graph's verifiers still work

    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + extra
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _number(result) -> float:
    shape = getattr(result, "shape", ())  # float() would accept an array of one entry
    if shape == () and not isinstance(result, str | bytes | bytearray):
        with contextlib.suppress(TypeError):
            return float(result)
    kind = f"{type(result).__module__}.{type(result).__qualname__}"
    raise TypeError(
        f"a reward must be one number, got {kind.removeprefix('builtins.')}"
        + (f" of shape {shape}" if shape != () else "")
        + "; return a float"
    )


def _text(error: BaseException) -> str:
    name = type(error).__name__
    try:
        return f"{name}: {error}"
    except BaseException:  # an exception's own __str__ may raise
        return f"{name}, whose message cannot be read"


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control_line:
        control_line.set_inheritable(False)
        with contextlib.suppress(EOFError, OSError):  # the trainer is gone
            serve(control_line)
