"""How a process joins the others of its run.

`jax.distributed` finds them from what a launcher leaves in the environment; see
`signs`. From then on `run.watch` ends them together.
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
"""All processes must have joined so long after the first, seconds."""


def signs(environment: Mapping[str, str]) -> list[str]:
    """The settings that say that this process is one of several; empty if it is alone.

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
    """Inside the context this process has joined its run; enter it before JAX starts.

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
    watching = watch.Watch()
    watching.start()
    try:
        processes.introduce(socket.gethostname(), os.getpid())
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.code, int):
            _part(watching)  # after a signal to one of them, all leave together
        else:
            watching.fail(error)
        raise
    _part(watching)


def _part(watching: watch.Watch) -> None:
    """Waits for the others, then leaves them."""
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
    # This package's loop answers SIGTERM itself, and knows when all can stop.
    jax.config.update("jax_enable_preemption_service", False)
    watch.answer_aborts(_not_all_came)
    try:
        jax.distributed.initialize(**given, initialization_timeout=JOIN_S)
    except ValueError as error:
        raise ValueError(
            f"{' and '.join(signs(environment))} must say how to find the other"
            f" processes, but {error} Set JAX_COORDINATOR_ADDRESS to host:port of the"
            " first, JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


def _by_hand(environment: Mapping[str, str]) -> dict[str, Any]:
    """The address, and how many processes there are and which this one is."""
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
        return {"coordinator_address": address}  # the launcher may say the rest
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
        raise ValueError(f"{key} must be a whole number, got {text!r}; set it right.")
    return int(text)


def _not_all_came() -> bytes:
    state = distributed.global_state
    return (
        f"\nerror: all {state.num_processes} processes must join within {JOIN_S} s, but"
        f" process {state.process_id} waited in vain at {state.coordinator_address};"
        " start the same command in all of them, or set their number right\n"
    ).encode()
