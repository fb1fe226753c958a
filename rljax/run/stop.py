"""Being asked to stop: SIGTERM (a preempted machine) and SIGINT (Ctrl-C)."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Asked:
    """Whether the process was asked to stop: `by` is None or the first signal."""

    by: signal.Signals | None = None


@contextlib.contextmanager
def asked_to_stop(notify: Callable[[signal.Signals], None]) -> Iterator[Asked]:
    """Within it, the first SIGTERM or Ctrl-C is only noted; a Ctrl-C after that leaves
    at once, with exit code 130. On exit the previous handlers are back.

    Python runs signal handlers between two of its instructions, but the main thread
    waits for the device most of the time. So the interpreter's wakeup socket is read
    by a thread. Outside the main thread, where Python knows no signals, nothing is
    installed.

    Args:
      notify: called with the first signal, from that thread.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def watch():
        while number := reader.recv(1)[0]:
            if number == signal.SIGINT and asked.by is not None:
                os._exit(128 + number)
            if number in _SIGNALS and asked.by is None:
                asked.by = signal.Signals(number)
                notify(asked.by)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {s: signal.signal(s, lambda *_: None) for s in _SIGNALS}
    try:
        yield asked
    finally:
        for s, handler in handlers.items():
            signal.signal(s, handler)
        signal.set_wakeup_fd(wakeup)
        writer.setblocking(True)
        writer.send(b"\0")
        thread.join()
        reader.close()
        writer.close()
