"""A pool of processes for calls that may fail in any way, with a timeout per call.

Each call runs in a process of its own, forked from one that has loaded the function. So
a call cannot affect the next one. A fork takes about 1 ms, and 3 ms more if the
function's module imports JAX. If a call raises, hangs, exits, takes too much memory or
writes garbage, only this call fails. No call is run twice.

After a call the pool kills all processes that the call started. On Linux these are all
descendants, even in other sessions. Elsewhere it is the call's process group: processes
that left the group survive, and so does a call that kills its worker. On macOS some
system frameworks do not work in a forked process.

This is not a sandbox. A call may use the network, change files, fork faster than it can
be killed, and signal any process of its user, the trainer included. Run malicious code
in a container or a virtual machine.

Why not a library: `concurrent.futures` and loky have no timeout per call. Pebble (5.2)
has a timeout per chunk of calls; its workers share one pipe under a lock, which is lost
if its holder dies (pebble issues 97, 163); and it does not kill what a worker started.
Here every worker has its own socket, and the trainer's side checks what arrives on it.
"""

import collections
import contextlib
import dataclasses
import math
import numbers
import os
import pickle
import selectors
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from multiprocessing import spawn

from rljax.verify.host import worker as workers

_START_TIMEOUT_S = 300.0
_FORK_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 5.0
_GRACE_S = 5.0  # beyond the timeout, which a worker enforces, unless it hangs itself
_MAX_STARTS = 3  # failed starts in a row, of servers and of workers
_MAX_FLOAT32 = 3.4028234663852886e38  # rewards are float32


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a call has no result.

    kind: "raised" (also if it returned no finite number), "timeout" or "died".
    detail: the exception, the limit, or how the process ended.
    """

    kind: str
    detail: str


class _Server:
    """The process that forks workers; it imports only the function's module."""

    def __init__(self, work: workers.Work):
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [spawn.get_executable(), "-P", workers.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # The accelerator belongs to the trainer, even if a call uses jax.
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                start_new_session=True,  # Ctrl-C must reach only the trainer
            )
        try:
            self._control.settimeout(_START_TIMEOUT_S)
            workers.send(self._control, pickle.dumps(tuple(work)))
            kind, _, text = self._answer()
        except BaseException:
            self._process.kill()
            self.close()
            raise
        if kind != workers.READY:
            self.close()
            raise RuntimeError(f"a worker cannot load its function: {text}. {_HINT}")
        self._control.settimeout(_FORK_TIMEOUT_S)

    def start(self, instead_of: int) -> tuple[socket.socket, int]:
        """Starts a worker; returns its socket and process id.

        Args:
          instead_of: process id of the worker it replaces, which is killed; 0: none.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            request = instead_of.to_bytes(8, "little")
            try:
                socket.send_fds(self._control, [request], [theirs.fileno()])
                kind, process, text = self._answer()
                if kind != workers.STARTED:
                    raise OSError(text)
            except BaseException:
                ours.close()
                raise
        return ours, int(process)

    def close(self) -> None:
        """Ends the server and all of its workers."""
        self._control.close()
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> tuple[bytes, float, str]:
        try:
            record = workers.receive_exactly(self._control, workers.SIZE)
        except EOFError as error:
            raise ConnectionError("it ended; see its own message above") from error
        return workers.unpack(record)


@dataclasses.dataclass(eq=False)
class _Worker:
    """A worker, as the trainer sees it.

    line: the socket to it.
    process: its process id.
    call: index of the call it works on; None if it is idle.
    deadline: when the worker is given up, by `time.monotonic`.
    record: the part of its answer that has arrived.
    """

    line: socket.socket
    process: int
    call: int | None = None
    deadline: float = math.inf
    record: bytes = b""


class Pool:
    """Runs a function on many arguments in processes; a context manager.

    Args:
      fn: returns a finite number. It is sent by name, so it must be importable. Its
        module is loaded once, in a process that then forks. The module may load models
        and tables for all calls; it should start no threads.
      num_workers: calls that run at the same time, at least 1.
      timeout_s: limit of one call, seconds.
      memory_bytes: address space that a call, and each process it starts, may take
        beyond what it has at its start (Linux only). Above it `fn` gets a MemoryError.
        None: no limit.

    Raises:
      ValueError: if an argument is out of range or `fn` cannot be sent.
      RuntimeError: from `with` or `run`, if no worker can be started.
    """

    def __init__(
        self,
        fn: Callable[..., float],
        *,
        num_workers: int,
        timeout_s: float,
        memory_bytes: int | None = None,
    ):
        if not callable(fn):
            raise ValueError(f"fn must be a function, got {fn!r}; pass it uncalled.")
        if not isinstance(num_workers, numbers.Integral) or num_workers < 1:
            raise ValueError(
                f"num_workers must be at least 1, got {num_workers!r}; pass an int."
            )
        if not isinstance(timeout_s, numbers.Real) or not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive seconds, got {timeout_s!r}.")
        if memory_bytes is not None and (
            not isinstance(memory_bytes, numbers.Integral)
            or memory_bytes < 1
            or not os.path.exists("/proc/self/statm")
        ):
            raise ValueError(
                "memory_bytes must be a positive number of bytes, on Linux, got"
                f" {memory_bytes!r}; pass None for no limit."
            )
        pickled = _pickled(fn)
        self._work = workers.Work(_setting(pickled), pickled, timeout_s, memory_bytes)
        self._num_workers = int(num_workers)
        self._server: _Server | None = None
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._lost_in_row = 0  # workers that died idle since the last answer
        self._arguments: Sequence[tuple] = ()
        self._queue: collections.deque[int] = collections.deque()
        self._results: dict[int, float | Failure] = {}

    def __enter__(self) -> "Pool":
        with self._closed_on_error():
            try:
                self._server = _Server(self._work)
            except OSError as error:
                raise RuntimeError(
                    f"a worker ended before it was ready: {error}. {_HINT}"
                ) from error
            for _ in range(self._num_workers):
                self._start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Kills all workers and the processes that their calls started."""
        while self._workers:
            self._workers.pop().line.close()
        self._selector.close()
        if self._server is not None:
            self._server.close()
            self._server = None

    def run(self, arguments: Sequence[tuple]) -> list[float | Failure]:
        """`fn(*args)`, or a `Failure`, for each `args`, in order."""
        if not self._workers:
            raise ValueError("the pool is closed; use it inside its `with` block.")
        self._arguments, self._results = arguments, {}
        self._queue.extend(range(len(arguments)))
        # After an error (Ctrl-C) workers still run calls: the pool must not be reused.
        with self._closed_on_error():
            while len(self._results) < len(arguments):
                self._feed()
                self._step()
        return [self._results[i] for i in range(len(arguments))]

    @contextlib.contextmanager
    def _closed_on_error(self):
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _feed(self) -> None:
        """Gives every idle worker a call."""
        for worker in [worker for worker in self._workers if worker.call is None]:
            if not self._queue:
                return
            call = self._queue[0]
            try:
                workers.send(worker.line, pickle.dumps(self._arguments[call]))
            except OSError:  # the worker died while idle; the call has not run
                self._replace(worker)
                continue
            worker.call, worker.record = self._queue.popleft(), b""
            worker.deadline = time.monotonic() + self._work.timeout_s + _GRACE_S

    def _step(self) -> None:
        """Reads what has arrived; waits at most until the next deadline."""
        left_s = min(worker.deadline for worker in self._workers) - time.monotonic()
        if left_s < math.inf:
            for key, _ in self._selector.select(max(0.0, left_s)):
                self._read(key.data)
        # Answers are read first: a call that is done must not fail by a busy trainer.
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.deadline < now]:
            self._lose(worker, self._timeout())

    def _read(self, worker: _Worker) -> None:
        try:
            piece = worker.line.recv(workers.SIZE - len(worker.record))
        except OSError:
            piece = b""
        if not piece or worker.call is None:
            self._lose(worker, Failure("died", "its worker was killed"))
            return
        worker.record += piece
        if len(worker.record) == workers.SIZE:
            self._results[worker.call] = self._judge(worker.record)
            worker.call, worker.deadline = None, math.inf
            self._lost_in_row = 0

    def _judge(self, record: bytes) -> float | Failure:
        """The result in a record. A call may have forged it, so nothing is trusted."""
        kind, number, text = workers.unpack(record)
        if kind == workers.NUMBER and abs(number) <= _MAX_FLOAT32:  # False for NaN
            return number
        if kind == workers.NUMBER:
            return Failure("raised", f"a reward must be a finite float32, got {number}")
        if kind == workers.ERROR:
            return Failure("raised", text)
        if kind == workers.TIMEOUT:
            return self._timeout()
        if kind == workers.DIED:
            return Failure("died", text)
        return Failure("died", "its process wrote something that is no answer")

    def _timeout(self) -> Failure:
        return Failure("timeout", f"{self._work.timeout_s:g} s")

    def _lose(self, worker: _Worker, failure: Failure) -> None:
        if worker.call is not None:
            self._results[worker.call] = failure
        self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        if worker.call is None:
            self._lost_in_row += 1
        if self._lost_in_row > self._num_workers * _MAX_STARTS:
            raise RuntimeError(f"workers end before their first call. {_HINT}")
        self._workers.remove(worker)
        self._selector.unregister(worker.line)
        worker.line.close()
        self._start(instead_of=worker.process)

    def _start(self, instead_of: int = 0) -> None:
        why: Exception | None = None
        for attempt in range(_MAX_STARTS):
            time.sleep(max(0, attempt - 1))  # memory may have been freed by then
            try:
                if self._server is None:
                    self._server = _Server(self._work)
                line, process = self._server.start(instead_of)
            except OSError as error:
                why = error
                if self._server is not None:
                    self._server.close()
                    self._server = None
                continue
            line.settimeout(_GRACE_S)
            self._workers.append(_Worker(line, process))
            self._selector.register(line, selectors.EVENT_READ, self._workers[-1])
            return
        raise RuntimeError(
            f"a worker could not be started, {_MAX_STARTS} times in a row: {why}."
            f" {_HINT}"
        ) from why


_HINT = (
    'A script needs `if __name__ == "__main__":` around what it runs; in a notebook,'
    " import the function from a file."
)


def _setting(pickled: bytes) -> dict:
    """What a new process needs to import the function, by `multiprocessing`."""
    setting = spawn.get_preparation_data("verifier")
    del setting["authkey"]  # cannot be pickled, and nothing here uses it
    if b"__main__" not in pickled:  # the script is not needed, and may import much
        setting.pop("init_main_from_name", None)
        setting.pop("init_main_from_path", None)
    return setting


def _pickled(fn: Callable) -> bytes:
    try:
        return pickle.dumps(fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"fn must be importable by its name, got {fn!r} ({error}); define it at the"
            " top level of a module, not as a lambda or inside a function."
        ) from error
