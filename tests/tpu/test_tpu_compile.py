"""Compiling for TPU chips that are not there: what the report says, what is refused."""

import functools
import json
import sys

import pytest
import tiny_program

from tpu import compile as tpu

CONFIG = tiny_program.Config()
K, P, S = CONFIG.steps_per_dispatch, CONFIG.num_prompts, CONFIG.prompt_tokens


@functools.cache
def compiled(topology, config=CONFIG):
    pytest.importorskip("libtpu")
    program = tiny_program.program(config)
    devices = tpu.find_devices(topology)
    return tpu.compile_for(devices, program.fused(), program.state, program.prompts)


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
    tpu.show(report | {"experiment": "tiny", "topology": "v5e:2x2"})


def test_collectives_are_counted_with_the_bytes_of_their_results():
    # -start has operand and result in its shape: counting it too would give 3 x 16.
    hlo = """
      %s = (bf16[8]{0}, bf16[8]{0}) all-gather-start(%a), replica_groups={{0,1}}
      %d = bf16[8]{0:T(128)S(1)} all-gather-done(%s)
      ROOT %r = (pred[], /*index=1*/f8e4m3fn[4,2]{1,0}) all-reduce(%x, %y), to_apply=%f
      %q = s32[] all-reduce(%z), metadata={op_name="jit(f)/while/body/reduce_sum"}
      %n = f32[8] fusion(%all-reduce.1), calls=%all-to-all
    """
    assert tpu.collectives(hlo) == {
        "all-gather": {"count": 1, "bytes": 16},
        "all-reduce": {"count": 2, "bytes": 1 + 8 + 4},
    }


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


def test_prompts_that_do_not_divide_are_refused_or_replaced():
    prompts = tiny_program.program(CONFIG).prompts
    with pytest.raises(ValueError, match=r"multiple of the 3 devices, got 8.*device 3"):
        tpu.fit_prompts(prompts, 3)
    fitted = tpu.fit_prompts(prompts, 3, per_device=5)
    assert fitted.tokens.shape == (K, 15, S) and fitted.id.shape == (K, 15)
    assert tpu.fit_prompts(prompts, 4).tokens == prompts.tokens


def test_flags_change_the_config_of_the_experiment():
    program = tpu.find_program("addition", ["--num-prompts", "6", "--d-model", "32"])
    assert program.prompts.tokens.shape[1] == 6
    assert program.state.params["embed"]["embedding"].shape[1] == 32
