"""How a process joins the others of its run, and how all end when one does.

`jax.distributed` finds the others from what a launcher leaves in the environment; see
`signs`. A thread then watches: it tells the leader every few seconds that this process
lives. A process that fails says why before it leaves. A process that was killed is not
heard of any more. Either way all others stop within a minute, and name it.
"""

import atexit
import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
from jax._src import cloud_tpu_init, distributed

from rljax import processes

BEAT_S = 2.0
"""Between two signs of life, seconds."""
LOST_S = 30.0
"""A process that was not heard of for so long is taken for dead, seconds."""
_FAILED, _ALIVE = "rljax/failed/", "rljax/alive/"  # as folders


def signs(environment: Mapping[str, str]) -> list[str]:
    """What says that this process is one of several; empty for one on its own.

    JAX_COORDINATOR_ADDRESS   with JAX_NUM_PROCESSES and JAX_PROCESS_ID: by hand
    SLURM_NTASKS              above 1, inside of a step (`srun`)
    OMPI_COMM_WORLD_SIZE,     above 1: Open MPI; other MPIs, which need mpi4py
    PMI_SIZE
    TPU_WORKER_HOSTNAMES,     several names: TPUs on GKE
    TPU_PROCESS_ADDRESSES
    MEGASCALE_NUM_SLICES      above 1: several slices of TPUs
    JOB_COMPLETION_INDEX      an indexed Job or JobSet of Kubernetes, if the package
                              `kubernetes` is there (pip install jax[k8s])
    a Cloud TPU VM            asks the metadata server

    Raises:
      ValueError: for a number that is none.
    """
    found = []
    for key in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MEGASCALE_NUM_SLICES"):
        if _number(environment, key, 1) > 1:
            found.append(key)
    tasks = _number(environment, "SLURM_NTASKS", 1)
    if tasks > 1 and "SLURM_STEP_NODELIST" in environment:
        found.append("SLURM_NTASKS")
    for key in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES"):
        if "," in environment.get(key, ""):
            found.append(key)
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        found.append("JAX_COORDINATOR_ADDRESS")
    indexed = {"JOB_COMPLETION_INDEX", "KUBERNETES_SERVICE_HOST"} <= environment.keys()
    if indexed and importlib.util.find_spec("kubernetes") is not None:
        found.append("JOB_COMPLETION_INDEX")
    if cloud_tpu_init.running_in_cloud_tpu_vm:
        found.append("a Cloud TPU VM")
    return found


@contextlib.contextmanager
def joined(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Inside the context this process is one of its run's; enter it before any device.

    A process that leaves by an error takes all others with it. Where nothing says that
    there are others, and where `jax.distributed.initialize` was called already, the
    context does nothing.

    Raises:
      ValueError: for an environment that says half of what is needed.
    """
    if jax.distributed.is_initialized() or not signs(environment):
        yield
        return
    _initialize(environment)
    if processes.count() == 1:
        yield
        return
    processes.introduce(socket.gethostname(), os.getpid())
    watch = Watch()
    watch.start()
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            _part(watch)  # after a signal to one of them, all leave together
        else:
            watch.fail(error)
        raise
    _part(watch)


def _part(watch: "Watch") -> None:
    """Waits for the others, then leaves them."""
    processes.barrier("end of the run")
    watch.stop()
    jax.distributed.shutdown()


def _initialize(environment: Mapping[str, str]) -> None:
    given: dict[str, Any] = {}
    if environment.get("JAX_COORDINATOR_ADDRESS"):
        given = _by_hand(environment)
    elif "OMPI_MCA_orte_hnp_uri" not in environment and (
        {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"} & environment.keys()
        and importlib.util.find_spec("mpi4py") is not None
    ):
        given = {"cluster_detection_method": "mpi4py"}
    # This package's loop answers SIGTERM itself, and knows when all can stop.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**given)
    except ValueError as error:
        raise ValueError(
            f"{' and '.join(signs(environment))} must say how to find the other"
            f" processes, but {error} Set JAX_COORDINATOR_ADDRESS to host:port of the"
            " first, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


def _by_hand(environment: Mapping[str, str]) -> dict[str, Any]:
    """The number of processes and this one's, where the environment has them."""
    keys = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address = environment["JAX_COORDINATOR_ADDRESS"]
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS must be host:port, got {address!r}; choose a free"
            " port of the first process's host."
        )
    present = [key for key in keys if key in environment]
    if not present:
        return {}  # the launcher's own variables may say it
    if len(present) == 1:
        (missing,) = set(keys) - set(present)
        raise ValueError(
            f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be set together, got only"
            f" {present[0]}; set {missing} too."
        )
    size, mine = (_number(environment, key, 0) for key in keys)
    if not 0 <= mine < size:
        raise ValueError(
            f"JAX_PROCESS_ID must be in [0, JAX_NUM_PROCESSES), got {mine} of {size};"
            " number the processes from 0, or raise JAX_NUM_PROCESSES."
        )
    return {"num_processes": size, "process_id": mine}


def _number(environment: Mapping[str, str], key: str, default: int) -> int:
    text = environment.get(key, str(default))
    if not text.isdigit():
        raise ValueError(f"{key} must be a whole number, got {text!r}; set it right.")
    return int(text)


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
        _report_lost_leader()

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


def _report_lost_leader() -> None:
    """Names the leader when JAX aborts this process because it is gone.

    JAX holds its connection to the leader in a thread of C++, and aborts as soon as it
    breaks, before any code of Python runs. So the signal of the abort is answered.
    """
    if processes.leads():
        return
    address = str(distributed.global_state.coordinator_address)
    host, _, port = address.rpartition(":")
    message = _message(0, _GONE)

    def answer(_: int) -> None:
        try:
            socket.create_connection((host, int(port)), timeout=2.0).close()
        except OSError:
            os.write(2, message)
            os._exit(1)

    _kept.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(answer))
    ctypes.CDLL(None).signal(signal.SIGABRT, _kept[-1])


_kept: list[object] = []  # ctypes does not keep what C calls
