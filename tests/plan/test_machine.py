"""What the machine is said to have and to do."""

import pathlib

import jax
import jax.numpy as jnp

from rljax.plan import machine


class Device:
    """A device of which this much is known."""

    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_free_memory_is_what_a_device_leaves_to_programs():
    assert machine.free_memory(Device({"bytes_limit": 100, "bytes_in_use": 30})) == 70


def test_free_memory_of_a_cpu_is_that_of_its_machine_or_its_container(tmp_path):
    assert 2**26 < machine.free_memory(jax.devices("cpu")[0]) < 2**50
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert machine._container_memory(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert machine._container_memory(tmp_path) is None
    assert machine._container_memory(pathlib.Path("nowhere")) is None


def test_rates_are_those_of_a_machine():
    # Without the factor 2, or timed without waiting, they would lie far outside.
    assert 1e7 < machine.matmul_flops_per_s(600, 16, 32, jnp.float32, 0.02) < 1e17
    assert 1e7 < machine.bandwidth(2**22, 0.02) < 1e15
