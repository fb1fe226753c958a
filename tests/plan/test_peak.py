"""The memory of a whole run: every program of it counts, the largest once."""

import jax
import jax.numpy as jnp
import tiny_program

from rljax import mesh
from rljax.plan import cost, peak


def asks(params, rows):
    """Holds 4 MiB at once: more than the tiny training step does."""
    table = jnp.sin(rows[:, None] + jnp.arange(1024.0))
    return jnp.sort(table, 0)[0, 0] + jax.tree.leaves(params)[0][0, 0]


def made():
    program = tiny_program.program(tiny_program.Config())
    rows = jax.ShapeDtypeStruct((1024,), jnp.float32)
    return program._replace(others={"evaluation": (asks, (program.state.params, rows))})


def test_the_largest_program_counts_beside_process_state_and_copy():
    program = made()
    step = cost.memory(program, program.sizes(), program.compile())
    found = peak.peak(program, step, on_host=True)
    assert set(found.programs) == {"training", "evaluation"}
    # An evaluation that holds more than a training step was not in the plan.
    assert found.programs["evaluation"] >= 2**22 > found.programs["training"]
    assert found.state + found.programs["training"] == step.total
    assert found.copy == cost.num_bytes(program.state)
    assert found.process > 2**26  # Python and JAX themselves
    rest = found.state + found.copy + found.programs["evaluation"]
    assert found.wanted == rest and found.total == rest + found.process


def test_the_devices_of_a_host_share_its_memory():
    # 8 simulated devices take 8 times what one of them says, evaluations, too.
    program = made()._replace(place=mesh.make(fsdp=8))
    step = cost.memory(program, program.sizes(), program.compile())
    found = peak.peak(program, step, on_host=True)
    alone = peak.peak(program, step, on_host=False)
    assert found.state == 8 * alone.state
    assert found.programs == {n: 8 * size for n, size in alone.programs.items()}
    assert found.copy == cost.num_bytes(program.state)  # written once


def test_a_device_of_its_own_holds_neither_the_process_nor_the_copy():
    program = made()
    step = cost.memory(program, program.sizes(), program.compile())
    found = peak.peak(program, step, on_host=False)
    assert found.process == found.copy == 0
