"""Requests to stop: SIGTERM (a preempted machine) and SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the process was asked to stop: `by` is the first signal, or None."""

    by: signal.Signals | None = None


@contextlib.contextmanager
def noting_requests(notify: Callable[[signal.Signals], None]) -> Iterator[StopRequest]:
    """A context in which the first SIGTERM or Ctrl-C is only recorded.

    A later Ctrl-C ends the process at once, with exit code 130. The end of the context
    restores the previous handlers. Outside the main thread, where Python does not allow
    handlers, the context does nothing.

    Python runs signal handlers only in the main thread, between two of its
    instructions; but that thread blocks on the device most of the time. So another
    thread reads the interpreter's wakeup socket.

    Args:
      notify: called with the first signal, from that thread.

    Yields:
      The request, which the thread sets.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch():
        while number := reader.recv(1)[0]:
            if number == signal.SIGINT and request.by is not None:
                os._exit(128 + number)
            if number in _SIGNALS and request.by is None:
                request.by = signal.Signals(number)
                notify(request.by)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
    try:
        yield request
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(wakeup)
        writer.setblocking(True)
        writer.send(b"\0")
        thread.join()
        reader.close()
        writer.close()
