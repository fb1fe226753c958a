"""An experiment as a value: stages, devices, glues, and errors before the folder."""

import contextlib
import dataclasses
import json
from typing import NamedTuple

import chex
import jax
import numpy as np
import pytest
from hugging_face_folders import TRAINABLE, small_params
from safetensors.numpy import load_file

from experiments import train
from rljax import experiment, mesh, spread
from rljax.data import tokenizer
from rljax.model import hugging_face
from rljax.plan import cost
from rljax.run import record
from rljax.types import NotMeasured

SIZES = train.QUICK | {"num_steps": 2, "steps_per_dispatch": 2}


def tiny(name="grpo", resources=None, **changes):
    make = train.with_numbers(name, train.Config)
    config = make(algorithm=name, **SIZES | changes)
    return train.build(config, resources)[0]


def weights(folder):
    return load_file(folder / "policy" / "model.safetensors")


def run(folder, *experiments, **options):
    return experiment.run(experiments, folder, config={"seed": 0}, **options)


def metrics(folder):
    records = record.read(folder / record.FILE)
    return [r for r in records if r["kind"] == "step"]


def test_a_step_that_cannot_be_traced_is_refused_before_the_folder_is_made(tmp_path):
    # grpo_kl reads the reference, which this experiment does not have.
    broken = dataclasses.replace(tiny("grpo_kl"), reference=False)
    with pytest.raises(NotMeasured, match="reference"):
        run(tmp_path / "run", broken)
    assert not (tmp_path / "run").exists()


def test_a_mesh_that_does_not_fit_is_refused_with_the_nearest_that_does():
    stages = [tiny(num_prompts=16), tiny(num_prompts=24, num_microbatches=2)]
    with pytest.raises(ValueError, match=r"4 prompts of a piece.*take fsdp=4\."):
        spread.on_devices(stages, {"fsdp": 8})
    with pytest.raises(ValueError, match=r"2 key/value heads.*take data=4,tensor=2\."):
        spread.on_devices(stages, {"tensor": 4})


def test_by_default_a_run_takes_as_many_devices_as_divide_its_prompts():
    (made,) = spread.on_devices([tiny(num_prompts=12)])
    assert dict(made.mesh.shape) == {"data": 4}
    (alone,) = spread.on_devices([tiny(num_prompts=7)])
    assert alone.mesh is None


def test_an_experiments_own_table_is_kept():
    # Else `spread` gives each device prompts of its own in the update, without a word.
    mine = mesh.Layout(update=mesh.Rules(embed=("tensor",)))
    own = dataclasses.replace(tiny(), layout=mine)
    made = spread.on_devices([tiny(), own], {"fsdp": 4, "tensor": 2})
    assert [one.layout for one in made] == [
        mesh.Layout(update=mesh.ONLY_PROMPTS),
        mine,
    ]
    assert made[1].program().layout == mine


class Device(NamedTuple):
    id: int
    process_index: int


def test_a_sampler_has_as_many_devices_of_each_process():
    # The first 4 of 8 would all be one process's, and weights cross between hosts.
    devices = [Device(i, i // 4) for i in range(8)]
    first, rest = spread._of_each_process(devices, 2)
    assert [d.id for d in first] == [0, 4]
    assert [d.id for d in rest] == [1, 2, 3, 5, 6, 7]
    with pytest.raises(ValueError, match=r"got 3 of 2 processes; take a multiple of 2"):
        spread._of_each_process(devices, 3)


def test_a_program_has_the_shapes_of_what_runs():
    made = tiny("ppo")
    program = made.program()
    first = next(made.prompts)
    chex.assert_trees_all_equal_shapes(program.prompts, first)
    state = jax.eval_shape(made.begin, made.model.shapes(), jax.random.key(0))
    chex.assert_trees_all_equal_shapes(program.state, state)
    assert set(state.params) == {"policy", "value"}


def held_bytes():
    return sum(x.nbytes for x in jax.live_arrays())


class Begun(Exception):
    pass


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 2}], ids=["whole", "adapters"])
def test_parameters_that_were_read_are_held_once(tmp_path, changes):
    # Kept beside the state they took 4 bytes a parameter for the whole run.
    folder, file = tmp_path / "model", tmp_path / "x.jsonl"
    words = tokenizer.character_tokenizer("0123456789+=")
    hugging_face.save(folder, TRAINABLE, small_params(TRAINABLE), tokenizer=words)
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)))
    made = tiny(model=folder, data=file, num_test=0, **changes)

    def at_the_start(params):
        held.append(held_bytes() - before)
        raise Begun

    evaluation = made.evaluation._replace(validate=at_the_start)
    made = dataclasses.replace(made, mesh=None, evaluation=evaluation)
    held, before = [], held_bytes()
    with pytest.raises(Begun):
        run(tmp_path / "run", made)
    assert held == [pytest.approx(cost.num_bytes(made.program().state), abs=1024)]


def test_asking_for_the_program_takes_no_prompts_from_the_stream():
    made = tiny()
    made.program()
    np.testing.assert_array_equal(next(made.prompts).id, next(tiny().prompts).id)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [None, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_eight_devices_make_the_run_of_one_and_it_resumes(tmp_path, sizes):
    def placed():
        (one,) = spread.on_devices([tiny()], sizes)
        assert one.mesh is not None and one.mesh.size == 8
        return one

    rates = run(tmp_path / "spread", placed())
    assert run(tmp_path / "alone", tiny()) == rates
    # Rounding alone differs: another summation order.
    chex.assert_trees_all_close(
        weights(tmp_path / "spread"), weights(tmp_path / "alone"), atol=1e-5
    )
    # What was saved in shards is restored to them, and evaluated once more.
    assert run(tmp_path / "spread", placed(), resume=True) == rates
    config = json.loads((tmp_path / "spread" / "config.json").read_text())
    assert config["seed"] == 0 and config["problems"]


class Collected:
    """A writer of one's own."""

    def __init__(self):
        self.records = []

    def write(self, records):
        self.records += records

    def sync(self):
        pass

    def close(self):
        pass


@pytest.mark.slow
def test_a_verifier_in_python_trains_the_same_policy(tmp_path):
    own = Collected()
    with contextlib.ExitStack() as resources:
        split = tiny(resources=resources, verifier="python")
        run(tmp_path / "split", dataclasses.replace(split, mesh=None), writers=[own])
    # A writer that was passed gets what metrics.jsonl gets, as it happens.
    steps = [r["step"] for r in own.records if r["kind"] == "step"]
    assert steps == [r["step"] for r in metrics(tmp_path / "split")] == [1, 2]
    run(tmp_path / "fused", dataclasses.replace(tiny(verifier="exact"), mesh=None))
    chex.assert_trees_all_close(
        weights(tmp_path / "split"), weights(tmp_path / "fused"), atol=1e-6
    )


@pytest.mark.slow
def test_a_stage_with_a_value_head_begins_with_the_decoder_before_it(tmp_path):
    warm = dataclasses.replace(tiny("sft"), name="warm start", mesh=None)
    ppo = dataclasses.replace(tiny("ppo"), mesh=None)
    rates = run(tmp_path / "run", warm, ppo)
    assert list(rates) == ["warm start", "after rl"]
    assert [r["phase"] for r in metrics(tmp_path / "run")] == ["warm start"] * 2 + [
        "rl"
    ] * 2
    assert "model.embed_tokens.weight" in weights(tmp_path / "run")
