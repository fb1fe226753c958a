"""Calls for verifier processes, which import this file: it must load quickly."""

import builtins
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import types

LOADED_IN = os.getpid()


def same(completion: str, answer: str) -> float:
    return float(completion == answer)


def fraction(completion: str, answer: str) -> float:
    return float(completion)


def process_id(completion: str, answer: str) -> float:
    return float(os.getpid())


def loader_id(completion: str, answer: str) -> float:
    """The process in which this file was loaded."""
    return float(LOADED_IN)


def has_imported(completion: str, answer: str) -> float:
    return float(completion in sys.modules)


class Mute(Exception):
    """Raises whatever it is asked."""

    def __str__(self):
        raise Mute

    __repr__ = __reduce__ = __str__


class Column:
    """An array of one number, which NumPy would take for the number."""

    shape = (1,)

    def __float__(self):
        return 1.0


def misbehave(completion: str, answer: str) -> float:
    """Does what the completion says; else the reward is whether it is the answer."""
    deed = DEEDS.get(completion)
    if deed is not None:
        return deed(answer)
    return same(completion, answer)


def _spin(answer):
    while True:
        pass


def _raise(answer):
    raise KeyError("no such thing")


def _mute(answer):
    raise Mute


def _recurse(answer):
    return _recurse(answer) + 1


def _signal_self(number):
    def deed(answer):
        os.kill(os.getpid(), number)
        time.sleep(1000)

    return deed


def _signal_parent(number):
    def deed(answer):
        os.kill(os.getppid(), number)
        time.sleep(1000)

    return deed


def _kill_server(answer):
    """The worker and what has started it."""
    with open(f"/proc/{os.getppid()}/stat", encoding="ascii") as file:
        server = int(file.read().rpartition(")")[2].split()[1])
    os.kill(server, signal.SIGKILL)
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(1000)


def _write_everywhere(data, times):
    def deed(answer):
        for file in range(3, 64):
            for _ in range(times):
                try:
                    os.write(file, data)
                except OSError:
                    break
        time.sleep(1000)

    return deed


def _close_all(answer):
    os.closerange(0, 256)
    return 1.0


def _fork(end):
    """The child ends as a Python function may; the parent answers meanwhile or later"""

    def deed(answer):
        child = os.fork()
        if child == 0:
            return end()
        if answer == "waits":
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return 0.25 + status
        return 0.25

    return deed


def _change(answer):
    """What a later call in the same process would trip over."""
    builtins.abs = lambda *_: 0.0
    struct.pack = lambda *_: b"12345678"
    os.chdir("/")
    os.environ.clear()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))
    threading.Thread(target=time.sleep, args=(1000,)).start()
    return 0.5


def _replace_all(answer):
    """The functions of this file and of the worker."""
    for names in (globals(), sys._getframe(2).f_globals):
        for name, value in list(names.items()):
            if isinstance(value, types.FunctionType):
                names[name] = lambda *_, **__: 1.0
    return 0.5


def _child(**options):
    def deed(answer):
        with open(answer, "w") as file:
            child = subprocess.Popen(["sleep", "1000"], **options)
            file.write(str(child.pid))
        child.wait()

    return deed


def _daemon(answer):
    """A grandchild in a session of its own, whose parent has ended."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(answer + ".new", "w") as file:
                file.write(str(os.getpid()))
            os.rename(answer + ".new", answer)
            time.sleep(1000)
        os._exit(0)
    while not os.path.exists(answer):
        time.sleep(0.001)
    return 0.75


def _print(answer):
    print("said", end="")
    return 1.0


DEEDS = {
    "hang": lambda answer: time.sleep(1000),
    "spin": _spin,
    "raise": _raise,
    "mute": _mute,
    "recurse": _recurse,
    "exit": lambda answer: os._exit(3),
    "silent": lambda answer: os._exit(0),
    "sys.exit": lambda answer: sys.exit(2),
    "memory": lambda answer: float(len(bytearray(4 << 30))),
    "nan": lambda answer: math.nan,
    "huge": lambda answer: 1e39,
    "digits": lambda answer: 10**400,
    "none": lambda answer: None,
    "text": lambda answer: "1.0" * (1 << 20),
    "column": lambda answer: Column(),
    "kill": _signal_self(signal.SIGKILL),
    "stop": _signal_self(signal.SIGSTOP),
    "crash": _signal_self(signal.SIGSEGV),
    "kill parent": _signal_parent(signal.SIGKILL),
    "stop parent": _signal_parent(signal.SIGSTOP),
    "kill server": _kill_server,
    "piece": _write_everywhere(b"n1234", 1),
    "flood": _write_everywhere(b"x" * 4096, 100),
    "close": _close_all,
    "fork, return": _fork(lambda: 0.5),
    "fork, raise": _fork(lambda: _raise("")),
    "fork, sys.exit": _fork(lambda: sys.exit(4)),
    "change": _change,
    "replace": _replace_all,
    "child": _child(),
    "session": _child(start_new_session=True),
    "daemon": _daemon,
    "print": _print,
}
