"""How many programs a run compiles: few, each once, whatever its length."""

import dataclasses
import io

import jax
import pytest
from rich.console import Console

from experiments import addition
from experiments import train as entry
from rljax import digest, experiment
from rljax.evaluate.before import Before
from rljax.run import train

TINY = dataclasses.replace(
    addition.QUICK,
    num_layers=1,
    d_model=16,
    num_heads=2,
    d_ff=32,
    num_prompts=8,
    warm_prompts=8,
    steps_per_dispatch=2,
    evaluate_every=2,
    checkpoint_every=2,
    num_validation=16,
    num_test=40,  # no multiple of the batch of 16 in which problems are asked
)


def compiled(compilations, run_dir, **numbers):
    """How many programs a run compiles: (in training, in the test at its end)."""
    config = dataclasses.replace(TINY, **numbers)
    stages = [dataclasses.replace(e, mesh=None) for e in addition.build(config)]
    phases = experiment.phases(stages, [e.loop() for e in stages], Before(run_dir))
    state = experiment._start(stages[0], stages[-1])
    digest._examine.clear_cache()  # a program of the library, not of a run
    compilations.clear()
    console = Console(file=io.StringIO())
    state = train.train(phases, state, run_dir, checkpoint_every=2, console=console)
    training = len(compilations)
    stages[-1].evaluation.test(state.params)
    return training, len(compilations) - training


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [2, 6])
def test_rl_compiles_four_programs_however_many_dispatches(
    compilations, tmp_path, num_steps
):
    # The fused loop, a look at the state before it is saved, and asking problems: 8
    # samples and greedily. A weak type would compile the loop again at the second of
    # the three dispatches, a last batch of another size the asking, an eager operation
    # of the host a program of its own.
    run = compiled(compilations, tmp_path, warm_steps=0, num_steps=num_steps)
    assert run == (4, 0)


@pytest.mark.slow
def test_a_warm_start_is_three_programs_more(compilations, tmp_path):
    # Its loop, a look at its state, whose structure is another, and the optimiser's
    # start of RL.
    assert compiled(compilations, tmp_path, warm_steps=6, num_steps=6) == (7, 0)


@pytest.mark.slow
def test_a_cold_start_compiles_five_programs(compilations, tmp_path):
    # Keys, parameters and state; a look at the state; asking, sampled and greedily; the
    # fused loop. A key that is made outside is three programs more, a policy that is
    # saved from the device one per shape, a test in batches of another size two.
    make = entry.with_numbers("grpo", entry.Config)
    config = make(algorithm="grpo", **entry.QUICK | {"num_test": 12})
    (made,) = [dataclasses.replace(e, mesh=None) for e in entry.build(config)]
    jax.clear_caches()
    compilations.clear()
    experiment.run([made], tmp_path / "run", config={})
    assert len(compilations) == 5
