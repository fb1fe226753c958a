"""Runs a program as several local processes, as a launcher on several hosts would."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import xla

ROOT = pathlib.Path(__file__).parents[2]
DEADLINE_S = 400.0  # of a busy machine with two cores


class Ended(NamedTuple):
    """How a process ended: its exit code (-9 for a kill -9) and all it printed."""

    code: int
    text: str


def run(
    arguments: Sequence[str] | Sequence[Sequence[str]], count: int, **options
) -> list[Ended]:
    """Runs `python *arguments` in `count` processes to their end."""
    with started(arguments, count, **options) as processes:
        return [end(one) for one in processes]


@contextlib.contextmanager
def started(
    arguments, count: int, *, devices: int = 2, **environment: str
) -> Iterator[list[subprocess.Popen]]:
    """The processes; none is left after the context.

    Args:
      arguments: of Python, for all processes, or a list for each of them.
      devices: of each process, on the CPU.
    """
    each = [arguments] * count if isinstance(arguments[0], str) else arguments
    common = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_NUM_PROCESSES": str(count),
        "PJRT_NPROC": "64",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        f" {xla.QUICK_FLAGS}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
        "PYTHONUNBUFFERED": "1",
        **environment,
    }
    processes = []
    try:
        for i in range(count):
            own = common | {"JAX_PROCESS_ID": str(i)}
            if count == 1:
                del own["JAX_COORDINATOR_ADDRESS"]
            processes.append(
                subprocess.Popen(
                    [sys.executable, *each[i]],
                    cwd=ROOT,
                    env=own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
            )
        yield processes
    finally:
        for one in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(one.pid, signal.SIGKILL)
            one.wait()
            assert one.stdout is not None
            one.stdout.close()


def end(process: subprocess.Popen) -> Ended:
    """Waits for a process; fails with what it printed if it takes too long."""
    try:
        text, _ = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        text, _ = process.communicate()
        raise AssertionError(f"still running after {DEADLINE_S} s: {text}") from None
    return Ended(process.returncode, text)


def wait_for(path: pathlib.Path, process: subprocess.Popen) -> None:
    """Waits until a file is there, while a process lives."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert process.poll() is None, end(process).text
        assert time.monotonic() < deadline, f"{path} is not there"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
