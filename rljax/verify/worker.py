"""What runs in each process of a `pool.Pool`: one call after the other, each reported.

Messages to the trainer are a kind, one byte, and a body. They are not pickled: the
trainer must not execute what a worker says.
"""

import multiprocessing
import os
import pickle
import signal
import struct
import threading
from multiprocessing.connection import Connection

import jax

READY = b"r"  # no body; can take calls
BROKEN = b"b"  # UTF-8: why it cannot start
NUMBER = b"n"  # float64, little endian: the result of a call
ERROR = b"e"  # UTF-8: why a call has no result
_MAX_TEXT = 500  # characters of an error
_MAX_FLOAT32 = 3.4028234663852886e38  # rewards are float32


def serve(pipe: Connection, fn: bytes, memory_bytes: int | None) -> None:
    """Answers lists of arguments with one message per call, until the pipe closes.

    Args:
      pipe: to the trainer.
      fn: the pickled function.
      memory_bytes: address space it may take beyond what is in use now; None: any.
    """
    os.setsid()  # a group of its own, so that it can be killed with its children
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The accelerator belongs to the trainer, also if `fn` or its module uses jax.
    jax.config.update("jax_platforms", "cpu")
    try:
        call = pickle.loads(fn)
        if memory_bytes is not None:
            _limit_memory(memory_bytes)
    except BaseException as error:
        pipe.send_bytes(BROKEN + _text(error))
        return
    pipe.send_bytes(READY)
    while True:
        try:
            chunk = pipe.recv()
        except EOFError:
            return
        for arguments in chunk:
            pipe.send_bytes(_answer(call, arguments))


def _answer(call, arguments: tuple) -> bytes:
    try:
        result = call(*arguments)
        if not abs(result) <= _MAX_FLOAT32:  # also if it is NaN
            raise ValueError(f"a reward must be a finite float32, got {result!r}")
        return NUMBER + struct.pack("<d", result)
    except BaseException as error:  # sys.exit() in `call` is an error of the call, too
        return ERROR + _text(error)


def _text(error: BaseException) -> bytes:
    return f"{type(error).__name__}: {error}"[:_MAX_TEXT].encode(errors="replace")


def _limit_memory(extra: int) -> None:
    import resource  # absent on Windows, where the graph's verifiers still work

    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _end_with_parent() -> None:
    """Kills this group when the trainer is gone, also amid a call that hangs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)
