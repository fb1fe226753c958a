"""Compiling for TPU chips that are not there: what the report says, what is refused."""

import functools
import json
import sys

import jax
import pytest
import tiny_program

from rljax import mesh
from rljax.model import decoder_policy
from tpu import compile as tpu
from tpu import model

CONFIG = tiny_program.Config()
K, P = CONFIG.steps_per_dispatch, CONFIG.num_prompts


@functools.cache
def compiled(topology, config=CONFIG):
    pytest.importorskip("libtpu")
    program = tiny_program.program(config)
    place = mesh.make(tpu.find_devices(topology))
    return tpu.compile_on(place, mesh.PLAIN, program)


@pytest.mark.slow
def test_four_chips_share_the_work_and_one_does_it_all():
    # Without the split each of the four would compute everything: a ratio of 1. With
    # few tokens the work on parameters, which is each chip's own, would count.
    config = tiny_program.Config(num_samples=8, max_tokens=8)
    one, four = compiled("v5e:1x1", config), compiled("v5e:2x2", config)
    assert (one["devices"], four["devices"]) == (1, 4)
    assert four["flops_per_device"] / one["flops_per_device"] == pytest.approx(
        1 / 4, rel=0.25
    )


@pytest.mark.slow
def test_gradients_meet_in_an_all_reduce_and_one_chip_needs_none():
    # A layer has 7 matrices of 16 x 16 or 16 x 32 and the embedding one of 16 x 16:
    # their gradients, 2,816 float32, are the least that has to travel.
    assert compiled("v5e:1x1")["collectives"] == {}
    reduced = compiled("v5e:2x2")["collectives"]["all-reduce"]
    assert reduced["count"] >= 1
    assert 4 * 2816 <= reduced["bytes"] < 2 * 4 * 2816


@pytest.mark.slow
def test_memory_is_reported_and_donation_saves_the_state():
    report = compiled("v5e:2x2")
    memory = report["memory_per_device"]
    # Temporaries may be 0: some compilers keep all of so small a program on the chip.
    assert memory["arguments"] > 0 and memory["code"] > 0
    assert memory["temporaries"] >= 0
    # Parameters at least; 0 where the state is not donated.
    assert 4 * 2816 < memory["outputs_in_arguments"] <= memory["outputs"]
    assert (report["steps_per_dispatch"], report["prompts_per_step"]) == (K, P)
    assert json.loads(json.dumps(report)) == report
    tpu.show(
        report | dict.fromkeys(("experiment", "model", "topology", "mesh"), "tiny")
    )


def test_an_unknown_topology_is_refused_with_examples():
    pytest.importorskip("libtpu")
    with pytest.raises(ValueError, match=r"v5p:4x4x8.*got 'v99:2x2'"):
        tpu.find_devices("v99:2x2")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install 'rljax\[tpu\]'"):
        tpu.find_devices("v5e:2x2")


@pytest.mark.parametrize("name", ["nothing_like_this", "ranges"])
def test_an_experiment_without_a_program_is_refused(name):
    with pytest.raises(SystemExit, match=rf"build\(config\).*{name}.*addition"):
        tpu.main(["--experiment", name, "--topology", "v5e:2x2"])


def made_for(num_devices, options, flags=(), shape=None):
    experiment = "addition" if shape is None else "train"
    made = tpu.find_experiment(experiment, list(flags), shape)
    common = {"experiment": experiment, "topology": "v5e:2x2"}
    return tpu.spread(
        made, jax.devices()[:num_devices], tpu.Options(**common | options)
    )


def test_prompts_that_do_not_divide_are_refused_or_replaced():
    with pytest.raises(ValueError, match=r"64 prompts .*multiple of 3.*take data=1\."):
        made_for(3, {})
    made = made_for(3, {"prompts_per_device": 6, "prompt_tokens": 50})
    assert made.batches().tokens.shape == (20, 18, 50)
    assert made.batches().id.shape == (20, 18)
    assert dict(made.mesh.shape) == {"data": 3}


def test_flags_change_the_config_of_the_experiment():
    flags = ["--num-prompts", "6", "--d-model", "32"]
    made = tpu.find_experiment("addition", flags)
    assert made.batches().tokens.shape[1] == 6
    assert made.model.config.d_model == 32


def test_a_known_shape_takes_the_place_of_the_model_and_large_ones_are_split():
    made = made_for(8, {"mesh": "fsdp=4,tensor=2"}, shape="qwen2.5-0.5b")
    program = made.program()
    assert program.state.params["embed"]["embedding"].shape == (151936, 896)
    assert (made.mesh.shape["fsdp"], made.layout.update) == (4, mesh.ONLY_PROMPTS)
    assert made_for(8, {}, shape="qwen2.5-0.5b").mesh.shape["fsdp"] == 8
    with pytest.raises(ValueError, match=r"2 key/value heads.*take data=4,tensor=2\."):
        made_for(8, {"mesh": "tensor=4"}, shape="qwen2.5-0.5b")


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2.5-0.5b", 0.494),
        ("qwen2.5-1.5b", 1.54),
        ("qwen2.5-7b", 7.62),
        ("qwen2.5-32b", 32.8),
        ("qwen3-0.6b", 0.596),
        ("qwen3-8b", 8.19),
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.6),
    ],
)
def test_known_shapes_have_the_parameters_that_their_cards_say(name, billions):
    policy = decoder_policy(model.shape(name))
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes))
    assert count / 1e9 == pytest.approx(billions, rel=0.005)


def test_an_unknown_model_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"qwen3-8b.*got 'qwen9'"):
        model.shape("qwen9")
