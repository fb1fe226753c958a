"""Ends all processes of a run when one of them fails or is killed.

A thread sends the leader a heartbeat every few seconds. A process that fails also sends
the reason before it exits; a process that was killed stops sending. In both cases all
others stop within a minute, with a message that names the process.
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
"""Seconds between two heartbeats."""
LOST_S = 30.0
"""Seconds without a heartbeat after which a process counts as dead."""
_FAILED, _ALIVE = "rljax/failed/", "rljax/alive/"  # key prefixes in JAX's store


class Watch(threading.Thread):
    """Sends heartbeats, and ends this process when another one has failed.

    The first process that fails writes the key `failed/first`, which all read. Only the
    leader reads heartbeats, so that many hosts cost little.
    """

    def __init__(self):
        super().__init__(name="other processes", daemon=True)
        self._client = processes.store()
        self._ended = threading.Event()
        self._beats: dict[str, tuple[str, float]] = {}
        answer_aborts(_leader_lost)

    def run(self) -> None:
        """Sends and reads heartbeats until `stop`; the body of the thread."""
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
                _end(0, _GONE)  # the leader, process 0, holds the store
            if lost is not None:
                what = f"was not heard of for {LOST_S:g} s: killed or cut off"
                self._write(lost, what)
                _end(lost, what)
            elif failed:
                _end(*json.loads(failed[0][1]))

    def stop(self) -> None:
        """Ends the thread, before this process disconnects in order."""
        self._ended.set()
        self.join()

    def fail(self, error: BaseException) -> None:
        """Tells the other processes of this one's error, which makes them stop.

        An error of JAX may be the consequence of another process's failure. So this
        process first waits until the other one has been named, within seconds, or, if
        it was killed, after its heartbeats have been missing for long enough.
        """
        text = f"{type(error).__name__}: {error}"
        own = "RESOURCE_EXHAUSTED" in text
        if isinstance(error, jax.errors.JaxRuntimeError) and not own:
            print(
                f"waiting to see whether another process failed, after {text[:200]}",
                file=sys.stderr,
            )
            time.sleep(LOST_S + 4 * BEAT_S)
        self._write(processes.index(), f"failed: {text}")
        self._ended.set()
        # At exit JAX would wait for the others to shut down. Before that, Python would
        # wait for threads of a save that wait for the others, hence the timer.
        atexit.register(_leave)
        last = threading.Timer(4 * BEAT_S, _leave)
        last.daemon = True
        last.start()

    def _write(self, number: int, what: str) -> None:
        # The store refuses a second value: the first failure is the one that counts.
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"{_FAILED}first", json.dumps([number, what]))

    def _lost(self) -> int | None:
        """A process whose heartbeat has been missing for too long, or None."""
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


_GONE = "is gone: killed, cut off, or ended by an error; see its log"


def _end(number: int, what: str) -> NoReturn:
    """Ends this process because of another one; may be called from any thread."""
    os.write(2, _message(number, what))
    _leave()


def _message(number: int, what: str) -> bytes:
    me = processes.index()
    return (
        f"\nerror: {processes.name(number)} {what}\nprocess {me} stops as well; start"
        " all processes again with --resume\n"
    ).encode()


def _leave() -> NoReturn:
    """Exits without a shutdown; the leader first lets the others read its store."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if processes.leads():
        time.sleep(2.5 * BEAT_S)
    os._exit(1)


def answer_aborts(reason: Callable[[], bytes | None]) -> None:
    """Prints a reason when JAX aborts this process.

    JAX's C++ code connects the processes, and aborts as soon as a connection breaks,
    before any Python code runs. So this installs a handler of SIGABRT.

    Args:
      reason: returns the text to print, or None if the abort has another cause.
    """

    def answer(_: int) -> None:
        text = reason()
        if text is not None:
            os.write(2, text)
            os._exit(1)

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(answer))
    ctypes.CDLL(None).signal(signal.SIGABRT, _kept[-1])


_kept: list[object] = []  # keeps the handlers alive, which ctypes does not do


def _leader_lost() -> bytes | None:
    """A message that the leader is gone, if its store cannot be reached, or None."""
    if processes.leads():
        return None
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError:
        return _message(0, _GONE)
    return None
