"""Joins the processes of a run.

`jax.distributed` finds the other processes from variables that a launcher sets in the
environment; see `signs`. After that, `run.watch` makes all of them end together.
"""

import contextlib
import importlib.util
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import cloud_tpu_init, distributed

from rljax import processes
from rljax.run import watch

JOIN_S = 300
"""Seconds after the first process within which all others must have joined."""


def signs(environment: Mapping[str, str]) -> list[str]:
    """The settings that make this process one of several; empty if it runs alone.

    JAX_COORDINATOR_ADDRESS   set by hand, with JAX_NUM_PROCESSES and JAX_PROCESS_ID
    SLURM_NTASKS              above 1, inside a job step (`srun`)
    OMPI_COMM_WORLD_SIZE,     above 1: Open MPI; other MPIs, which need mpi4py
    PMI_SIZE
    TPU_WORKER_HOSTNAMES,     several names: TPUs on GKE
    TPU_PROCESS_ADDRESSES
    MEGASCALE_NUM_SLICES      above 1: several TPU slices
    JOB_COMPLETION_INDEX      an indexed Job or JobSet of Kubernetes, if the package
                              `kubernetes` is installed (pip install jax[k8s])
    a Cloud TPU VM            where JAX asks the metadata server

    Raises:
      ValueError: if a variable that must be a number is not one.
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
    """A context in which this process has joined its run; enter it before JAX starts.

    If one process leaves with an error, all others end too. The context does nothing if
    there are no other processes, or if `jax.distributed.initialize` was already called.

    Args:
      environment: variables that a launcher sets; see `signs`.

    Raises:
      ValueError: if the environment has only a part of the settings that are needed.
    """
    if jax.distributed.is_initialized() or not signs(environment):
        yield
        return
    _initialize(environment)
    if processes.count() == 1:
        yield
        return
    watching = watch.Watch()
    watching.start()
    try:
        processes.introduce(socket.gethostname(), os.getpid())
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            _leave_together(watching)  # one process got a signal; all stop in order
        else:
            watching.fail(error)
        raise
    _leave_together(watching)


def _leave_together(watching: watch.Watch) -> None:
    """Waits for the other processes, then disconnects."""
    processes.barrier("end of the run")
    watching.stop()
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
    # The run loop handles SIGTERM itself: it knows when all processes can stop.
    jax.config.update("jax_enable_preemption_service", False)
    watch.answer_aborts(_not_all_came)
    try:
        jax.distributed.initialize(**given, initialization_timeout=JOIN_S)
    except ValueError as error:
        raise ValueError(
            f"{' and '.join(signs(environment))} must say how to find the other"
            f" processes, but {error} Set JAX_COORDINATOR_ADDRESS to host:port of the"
            " first process, and set JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


def _by_hand(environment: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of `jax.distributed.initialize`, from variables set by hand."""
    keys = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address = environment["JAX_COORDINATOR_ADDRESS"]
    if ":" not in address and "JAX_COORDINATOR_PORT" in environment:
        address += f":{environment['JAX_COORDINATOR_PORT']}"
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(
            f"JAX_COORDINATOR_ADDRESS must be host:port, got {address!r}; choose a free"
            " port of the first process's host."
        )
    present = [key for key in keys if key in environment]
    if not present:
        return {"coordinator_address": address}  # the launcher may give the numbers
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
    given = {"num_processes": size, "process_id": mine}
    return given | {"coordinator_address": address}


def _number(environment: Mapping[str, str], key: str, default: int) -> int:
    text = environment.get(key, str(default))
    if not text.isdigit():
        raise ValueError(f"{key} must be a whole number, got {text!r}; correct it.")
    return int(text)


def _not_all_came() -> bytes:
    state = distributed.global_state
    return (
        f"\nerror: all {state.num_processes} processes must join within {JOIN_S} s, but"
        f" process {state.process_id} waited in vain at {state.coordinator_address};"
        " start the same command in all of them, or correct their number\n"
    ).encode()
