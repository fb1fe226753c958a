"""How a process learns that there are others, and what one on its own does."""

import pytest
import several

from rljax import processes
from rljax.run import cluster

BY_HAND = {"JAX_COORDINATOR_ADDRESS": "first:1234"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, []),
        # Launchers that started one process only: nothing to wait for.
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a"}, []),
        # An allocation without a step: this process was not started by srun.
        ({"SLURM_NTASKS": "4"}, []),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, []),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, []),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-4]"}, ["SLURM_NTASKS"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_COMM_WORLD_SIZE"]),
        ({"PMI_SIZE": "2"}, ["PMI_SIZE"]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, ["TPU_WORKER_HOSTNAMES"]),
        ({"MEGASCALE_NUM_SLICES": "2"}, ["MEGASCALE_NUM_SLICES"]),
        (BY_HAND, ["JAX_COORDINATOR_ADDRESS"]),
    ],
)
def test_signs_of_other_processes(environment, found):
    assert cluster.signs(environment) == found


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "first"}, "must be host:port, got 'first'"),
        (BY_HAND | {"JAX_NUM_PROCESSES": "2"}, "set JAX_PROCESS_ID too"),
        # The port may stand apart; then the address is not what is missing.
        (
            {
                "JAX_COORDINATOR_ADDRESS": "first",
                "JAX_COORDINATOR_PORT": "1234",
                "JAX_PROCESS_ID": "0",
            },
            "set JAX_NUM_PROCESSES too",
        ),
        (BY_HAND | {"JAX_PROCESS_ID": "0"}, "set JAX_NUM_PROCESSES too"),
        (
            BY_HAND | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "got 2 of 2; number the processes from 0",
        ),
        (
            BY_HAND | {"JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
            "JAX_NUM_PROCESSES must be a whole number, got 'two'",
        ),
        ({"PMI_SIZE": "many"}, "PMI_SIZE must be a whole number, got 'many'"),
    ],
)
def test_half_an_environment_is_refused_before_it_waits(environment, told):
    # jax.distributed would wait five minutes for processes that do not exist.
    with pytest.raises(ValueError, match=told), cluster.joined(environment):
        pass


def test_a_process_on_its_own_agrees_with_itself():
    with cluster.joined({}):
        assert processes.count() == 1 and processes.leads()
        assert processes.gathered("a value", 3) == [3]
        assert processes.from_leader("a value", lambda: object) is object
        processes.require_same("values", {"a": object()}, "Do as it does.")
        with processes.led("a context", open(__file__)) as file:
            assert file.readable()
        assert file.closed


AGREE = """
from rljax import processes
from rljax.run import cluster

with cluster.joined():
    me = processes.index()
    assert processes.gathered("numbers", me) == [0, 1]
    assert processes.from_leader("a word", lambda: f"of {me}") == "of 0"
    for number in range(3):  # rounds do not mix
        assert processes.gathered("rounds", number) == [number] * 2
    try:
        processes.require_same("colours", {"sky": ["blue", "grey"][me]}, "Look up.")
    except ValueError as error:
        print(error)
    print(processes.name(1))
"""


def test_two_processes_agree_and_part():
    for one in several.run(["-c", AGREE], 2, devices=1):
        assert one.code == 0, one.text
        assert "process 1 of 2 (host" in one.text
        # The leader is told, too: it would else wait for a process that has left.
        assert "colours must be the same" in one.text
        assert "sky: grey there, blue here. Look up." in one.text
