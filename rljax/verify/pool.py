"""A pool of processes for calls that may fail in every way, each with a real timeout.

A call that raises, hangs, exits or takes too much memory fails alone: its worker is
killed, together with all processes it started, and replaced; no call is run twice.

Why not a library: `concurrent.futures` and loky have no timeout per call. Pebble (5.2)
has one per chunk of calls, lets its workers share one pipe under a lock that is lost
with its holder (pebble issues 97, 163), and leaves alive what a worker started. Here
every worker has a pipe of its own and reports after every call, so that the call it was
at when it ended is known, and the rest of its chunk goes back to the queue.
"""

import collections
import contextlib
import dataclasses
import math
import multiprocessing
import os
import pickle
import selectors
import signal
import struct
import time
from collections.abc import Callable, Sequence

from rljax.verify import worker as workers

_START_TIMEOUT_S = 300.0
_KILL_TIMEOUT_S = 10.0  # a process in an uninterruptible system call dies later
_MAX_FAILED_STARTS = 3  # in a row, once the pool has run


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a call has no result.

    kind: "raised" (also: returned no finite number), "timeout" or "died".
    detail: the exception, the limit, or how the process ended.
    """

    kind: str
    detail: str


class _Worker:
    """A process, the pipe to it, and the calls it has been given and not answered."""

    def __init__(self, fn: bytes, memory_bytes: int | None):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        with theirs:  # closed here, so that it closes for good when the worker ends
            self.process = context.Process(
                target=workers.serve, args=(theirs, fn, memory_bytes)
            )
            self.process.start()
        self.ready = False
        self.calls: collections.deque[int] = collections.deque()
        self.deadline = time.monotonic() + _START_TIMEOUT_S

    @property
    def idle(self) -> bool:
        return self.ready and not self.calls

    def kill(self) -> str:
        """Ends the process and its group; says how it ended."""
        group = self.process.pid  # `serve` makes it the leader of one
        if group is not None:
            # Before the process is reaped: after it the id may be somebody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        self.process.kill()
        self.process.join(_KILL_TIMEOUT_S)
        self.pipe.close()
        return f"exit code {self.process.exitcode}"


class Pool:
    """Runs a function on many arguments, in processes; a context manager.

    Args:
      fn: returns a finite number. It is sent by name, so it must be importable.
      num_workers: processes, at least 1.
      timeout_s: limit of one call, seconds.
      memory_bytes: address space a worker may take beyond what it has when it starts
        (Linux): more raises MemoryError in `fn`. None: no limit.

    Raises:
      ValueError: if an argument is out of range or `fn` cannot be sent.
      RuntimeError: from `with` or `run`, if no worker can be started. That is not the
        failure of a call: nothing could be run any more.
    """

    def __init__(
        self,
        fn: Callable[..., float],
        *,
        num_workers: int,
        timeout_s: float,
        memory_bytes: int | None = None,
    ):
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}.")
        if not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s must be positive seconds, got {timeout_s}.")
        if memory_bytes is not None and (
            memory_bytes < 1 or not os.path.exists("/proc/self/statm")
        ):
            raise ValueError(
                "memory_bytes must be a positive number of bytes, on Linux, got"
                f" {memory_bytes}; pass None for no limit."
            )
        self._fn = _pickled(fn)
        self._num_workers, self._timeout_s = num_workers, timeout_s
        self._memory_bytes = memory_bytes
        self._workers: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._failed_starts, self._tolerated_starts = 0, 0
        self._arguments: Sequence[tuple] = ()
        self._queue: collections.deque[int] = collections.deque()
        self._results: dict[int, float | Failure] = {}

    def __enter__(self) -> "Pool":
        with self._closed_on_error():
            for _ in range(self._num_workers):
                self._start()
            while not all(worker.ready for worker in self._workers):
                self._step()
        self._tolerated_starts = _MAX_FAILED_STARTS - 1
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Kills all workers."""
        while self._workers:
            self._workers.pop().kill()
        self._selector.close()

    def run(self, arguments: Sequence[tuple]) -> list[float | Failure]:
        """`fn(*args)` for each `args`, or why there is no result; in order."""
        if not self._workers:
            raise ValueError("the pool is closed; use it inside its `with` block.")
        self._arguments, self._results = arguments, {}
        self._queue.extend(range(len(arguments)))
        # After an error (Ctrl-C) workers still have calls: never mix them with others.
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
        """Gives every idle worker a share of the queue, smaller towards its end."""
        for worker in [worker for worker in self._workers if worker.idle]:
            share = math.ceil(len(self._queue) / (2 * self._num_workers))
            if share == 0:
                return
            worker.calls.extend(self._queue.popleft() for _ in range(share))
            worker.deadline = time.monotonic() + self._timeout_s
            try:
                worker.pipe.send([self._arguments[i] for i in worker.calls])
            except OSError:  # it had ended while idle: no call is to blame
                self._queue.extendleft(reversed(worker.calls))
                self._retire(worker)
                self._start()

    def _step(self) -> None:
        """Waits for messages, at most until the next deadline, and handles both."""
        waiting = [worker for worker in self._workers if not worker.idle]
        left_s = min(worker.deadline for worker in waiting) - time.monotonic()
        for key, _ in self._selector.select(max(0.0, left_s)):
            try:
                message = key.data.pipe.recv_bytes()
            except (EOFError, OSError):
                self._lose(key.data, "died")
            else:
                self._receive(key.data, message[:1], message[1:])
        # Messages come first: a busy trainer must not fail a call that is done.
        now = time.monotonic()
        for worker in waiting:
            if worker in self._workers and not worker.idle and worker.deadline < now:
                self._lose(worker, "timeout")

    def _receive(self, worker: _Worker, kind: bytes, body: bytes) -> None:
        worker.deadline = time.monotonic() + self._timeout_s
        if kind == workers.READY:
            worker.ready, self._failed_starts = True, 0
        elif kind == workers.BROKEN:
            raise RuntimeError(f"a worker cannot load its function: {body.decode()}")
        elif kind == workers.NUMBER:
            self._results[worker.calls.popleft()] = struct.unpack("<d", body)[0]
        else:
            self._results[worker.calls.popleft()] = Failure("raised", body.decode())

    def _lose(self, worker: _Worker, kind: str) -> None:
        """Fails the call at which a worker hangs or died, and replaces the worker."""
        ended = self._retire(worker)
        if not worker.ready:
            self._count_failed_start(f"{kind}, {ended}")
        elif worker.calls:
            detail = f"{self._timeout_s:g} s" if kind == "timeout" else ended
            self._results[worker.calls.popleft()] = Failure(kind, detail)
            self._queue.extendleft(reversed(worker.calls))
        self._start()

    def _retire(self, worker: _Worker) -> str:
        self._workers.remove(worker)
        self._selector.unregister(worker.pipe)
        return worker.kill()

    def _start(self) -> None:
        while True:
            try:
                worker = _Worker(self._fn, self._memory_bytes)
                break
            except OSError as error:  # no memory or no process left, perhaps not now
                self._count_failed_start(str(error))
                time.sleep(1.0)
        self._workers.append(worker)
        self._selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _count_failed_start(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts > self._tolerated_starts:
            raise RuntimeError(
                f"a worker ended before it was ready ({why}; see its own message above)"
                f" {self._failed_starts} times in a row. A script needs"
                ' `if __name__ == "__main__":` around what it runs; in a notebook,'
                " import the function from a file."
            )


def _pickled(fn: Callable) -> bytes:
    try:
        return pickle.dumps(fn)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"fn must be importable by its name, got {fn!r} ({error}); define it at the"
            " top level of a module, not as a lambda or inside a function."
        ) from error
