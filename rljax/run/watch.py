"""How all processes of a run end when one of them does.

A thread tells the leader every few seconds that this process lives. A process that
fails says why before it leaves. A process that was killed is not heard of any more.
Either way all others stop within a minute, and name it.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import jax
from jax._src import distributed

from rljax import processes

BEAT_S = 2.0
"""Between two signs of life, seconds."""
LOST_S = 30.0
"""A process that was not heard of for so long is taken for dead, seconds."""
_FAILED, _ALIVE = "rljax/failed/", "rljax/alive/"  # as folders


class Watch(threading.Thread):
    """Tells the others that this process lives, and ends it when one of them does not.

    All read the key `failed/first`, which the first process that fails writes. Only the
    leader looks at the signs of life, so that many hosts cost little.
    """

    def __init__(self):
        super().__init__(name="other processes", daemon=True)
        self._client = processes.store()
        self._ended = threading.Event()
        self._beats: dict[str, tuple[str, float]] = {}
        answer_aborts(_leader_lost)

    def run(self) -> None:
        number = 0
        while not self._ended.wait(BEAT_S):
            number += 1
            try:
                mine = f"{_ALIVE}{processes.index()}"
                self._client.key_value_set(mine, str(number), allow_overwrite=True)
                failed = self._client.key_value_dir_get(_FAILED)
                lost = self._lost() if processes.leads() else None
            except jax.errors.JaxRuntimeError:
                if self._ended.is_set():
                    return
                _end(0, _GONE)  # the store is the leader's
            if lost is not None:
                what = f"was not heard of for {LOST_S:g} s: killed or cut off"
                self._write(lost, what)
                _end(lost, what)
            elif failed:
                _end(*json.loads(failed[0][1]))

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def fail(self, error: BaseException) -> None:
        """Tells the others of this process's error; they stop, and it need not wait.

        An error of JAX may be another process's doing. Then that one is named within
        seconds, or, if it was killed, when it was not heard of for long enough.
        """
        text = f"{type(error).__name__}: {error}"
        own = "RESOURCE_EXHAUSTED" in text
        if isinstance(error, jax.errors.JaxRuntimeError) and not own:
            print(f"waiting for word of the others after {text[:200]}", file=sys.stderr)
            time.sleep(LOST_S + 4 * BEAT_S)
        self._write(processes.index(), f"failed: {text}")
        self._ended.set()
        # JAX would wait for the others' shutdown, and Python, before it calls what is
        # registered here, for threads of a save that wait for the others.
        atexit.register(_leave)
        last = threading.Timer(4 * BEAT_S, _leave)
        last.daemon = True
        last.start()

    def _write(self, number: int, what: str) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first
            self._client.key_value_set(f"{_FAILED}first", json.dumps([number, what]))

    def _lost(self) -> int | None:
        """A process whose sign of life has not changed for too long."""
        now = time.monotonic()
        beats = dict(self._client.key_value_dir_get(_ALIVE))
        for number in range(processes.count()):
            key = f"{_ALIVE}{number}"
            last, since = self._beats.setdefault(key, ("", now))
            beat = beats.get(key, "")
            if beat != last:
                self._beats[key] = (beat, now)
            elif now - since > LOST_S:
                return number
        return None


_GONE = "is gone: killed, cut off, or ended by an error that its log tells"


def _end(number: int, what: str) -> NoReturn:
    """Ends this process because of another, from any thread."""
    os.write(2, _message(number, what))
    _leave()


def _message(number: int, what: str) -> bytes:
    me = processes.index()
    return (
        f"\nerror: {processes.name(number)} {what}\nprocess {me} stops as well; start"
        " all processes again with --resume\n"
    ).encode()


def _leave() -> NoReturn:
    """Leaves without waiting for the others; the leader, when they had time to read."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if processes.leads():
        time.sleep(2.5 * BEAT_S)
    os._exit(1)


def answer_aborts(reason: Callable[[], bytes | None]) -> None:
    """Says why JAX aborts this process; `reason` returns None if it knows none.

    What connects the processes is C++, which aborts as soon as a connection breaks,
    before any code of Python runs. So the signal of the abort is answered.
    """

    def answer(_: int) -> None:
        text = reason()
        if text is not None:
            os.write(2, text)
            os._exit(1)

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(answer))
    ctypes.CDLL(None).signal(signal.SIGABRT, _kept[-1])


_kept: list[object] = []  # ctypes does not keep what C calls


def _leader_lost() -> bytes | None:
    """The leader's name, if its store, which is its first to go, cannot be reached."""
    if processes.leads():
        return None
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError:
        return _message(0, _GONE)
    return None
