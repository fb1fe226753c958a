"""Compiling for TPU chips that are not there: what the report says, what is refused."""

import dataclasses
import functools
import json
import sys

import jax
import pytest
import tiny_program
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from rljax import decoupled, mesh, spread
from rljax.model import Experts
from rljax.plan import hlo
from tpu import chips, gpu, links, memory, report, roofline, subject
from tpu import compile as tpu

CONFIG = tiny_program.Config()
K, P = CONFIG.steps_per_dispatch, CONFIG.num_prompts


@functools.cache
def compiled(topology, config=CONFIG):
    pytest.importorskip("libtpu")
    place = mesh.make(tpu.find_devices(topology))
    return tpu.compile_on(tiny_program.program(config)._replace(place=place))


def test_a_mesh_lies_on_every_slice_that_it_divides():
    # tensor=8 takes one axis of v6e:4x4 and half of the other.
    pytest.importorskip("libtpu")
    for topology, sizes in (
        ("v6e:4x4", {"fsdp": 2, "tensor": 8}),
        ("v6e:4x8", {"data": 2, "fsdp": 8, "tensor": 2}),
        ("v5p:2x4x4", {"data": 2, "fsdp": 8, "tensor": 2}),
        ("v5p:4x4x8", {"fsdp": 64, "tensor": 2}),
    ):
        place = mesh.make(tpu.find_devices(topology), **sizes)
        assert dict(place.shape) == {"data": 1} | sizes


def some_of_each_host(topology, num):
    """(the first chips of each host, the others), as a sampler and a learner get."""
    pytest.importorskip("libtpu")
    return spread._of_each_process(tpu.find_devices(topology), num)


def test_chips_between_which_others_lie_are_refused():
    # libtpu would abort the process: the hosts of v5e:4x4 lie in a square.
    sampler, _ = some_of_each_host("v5e:4x4", 8)
    with pytest.raises(ValueError, match=r"8 TPU chips .*box.*hosts lie in a row"):
        mesh.make(sampler, fsdp=8)


def test_halves_of_each_host_have_the_same_parts_in_any_shape():
    # `mesh.move` copies parts between chips of a host. Laid out for short ways, fsdp=8
    # would go through all hosts twice, and fsdp=4,tensor=2 once.
    sampler, learner = some_of_each_host("v5p:2x2x4", 8)
    first = mesh.choose(mesh.Limits(8), {"fsdp": 8}, devices=sampler, in_order=True)
    sizes = {"fsdp": 4, "tensor": 2}
    second = mesh.choose(mesh.Limits(8, 2), sizes, devices=learner, in_order=True)
    hosts = [[d.process_index for d in m.devices.flat] for m in (first, second)]
    assert hosts == [[0, 0, 1, 1, 2, 2, 3, 3]] * 2


@pytest.mark.slow
def test_both_halves_of_a_decoupled_loop_compile_for_half_of_a_host():
    pytest.importorskip("libtpu")
    chips = tpu.find_devices("v5e:2x4")
    sampler = mesh.make(chips[:4], in_order=True, fsdp=2, tensor=2)
    learner = mesh.make(chips[4:], in_order=True, fsdp=4)
    made = tiny_program.program(CONFIG)
    ahead = decoupled.Ahead(staleness=1, mesh=sampler)
    sample = jax.jit(decoupled._sampling(made.act, made.verify))
    finish = jax.jit(decoupled._learning(made.learner, ahead), donate_argnums=0)
    steps = jax.ShapeDtypeStruct((), jax.numpy.int32)
    with tpu._no_compilation_cache():
        with mesh.using(sampler):
            policy = made.state.replace(optimizer=(), algorithm=(), gate=())
            policy = mesh.shapes.stored(policy, sampler)
            batch = mesh.shapes.split(made.batch(), sampler)
            lowered = sample.lower(policy, batch, steps)
            assert lowered.compile().memory_analysis().peak_memory_in_bytes > 0
        rollout = jax.eval_shape(sample, made.state, made.batch(), steps)
        whole = NamedSharding(learner, PartitionSpec())
        rollout = jax.tree.map(lambda x: x.update(sharding=whole), rollout)
        with mesh.using(learner):
            state = mesh.shapes.stored(made.state, learner)
            compiled = finish.lower(state, None, rollout).compile()
            assert compiled.memory_analysis().alias_size_in_bytes > 0


def two_slices():
    pytest.importorskip("libtpu")
    tpu.find_devices("v5e:2x2")  # sets what libtpu asks for
    return list(topologies.get_topology_desc("v5e:2x2", "tpu", num_slices=2).devices)


def test_slices_lie_along_data():
    place = mesh.make(two_slices(), data=2, fsdp=2, tensor=2)
    at = [[d.slice_index for d in part.flat] for part in place.devices]
    assert at == [[0] * 4, [1] * 4]
    with pytest.raises(ValueError, match=r"multiple of the 2 slices.*take data=2\."):
        mesh.make(two_slices(), fsdp=8)
    chosen = mesh.choose(
        mesh.Limits(prompts=8), num_bytes=2 * mesh.LARGE, devices=two_slices()
    )
    assert dict(chosen.shape) == {"data": 2, "fsdp": 4}


@pytest.mark.slow
def test_a_step_compiles_for_two_slices():
    place = mesh.make(two_slices(), data=2, fsdp=4)
    found = tpu.compile_on(tiny_program.program(CONFIG)._replace(place=place))
    assert found["memory_per_device"]["arguments"] > 0
    assert found["collectives"]


@pytest.mark.slow
def test_four_chips_share_the_work_and_one_does_it_all():
    # Without the split each of the four would compute everything: a ratio of 1. With
    # few tokens the work on parameters, which is each chip's own, would count.
    config = tiny_program.Config(num_samples=8, max_tokens=8)
    one, four = compiled("v5e:1x1", config), compiled("v5e:2x2", config)
    assert four["flops_per_device"] / one["flops_per_device"] == pytest.approx(
        1 / 4, rel=0.25
    )


@pytest.mark.slow
def test_gradients_meet_in_an_all_reduce_and_one_chip_needs_none():
    # A layer has 7 matrices of 16 x 16 or 16 x 32 and the embedding one of 16 x 16:
    # their gradients, 2,816 float32, are the least that has to travel in each step.
    assert compiled("v5e:1x1")["collectives"] == {}
    reduced = compiled("v5e:2x2")["collectives"]["all-reduce"]
    assert reduced["count"] >= 1
    assert 4 * 2816 <= reduced["bytes"] / K < 2 * 4 * 2816


@pytest.mark.slow
def test_memory_is_reported_and_donation_saves_the_state():
    found = compiled("v5e:2x2")
    sizes = found["memory_per_device"]
    # Temporaries may be 0: some compilers keep all of so small a program on the chip.
    assert sizes["arguments"] > 0 and sizes["code"] > 0
    assert sizes["temporaries"] >= 0
    # Parameters at least; 0 where the state is not donated.
    assert 4 * 2816 < sizes["outputs_in_arguments"] <= sizes["outputs"]
    assert json.loads(json.dumps(found)) == found


def test_an_unknown_topology_is_refused_with_examples():
    with pytest.raises(ValueError, match=r"v5p:4x4x8.*got 'v99:2x2'"):
        chips.parse("v99:2x2")
    with pytest.raises(ValueError, match=r"one of v5e:1x1, [^h]*, got 'v5e:3x3'"):
        chips.parse("v5e:3x3")


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"pip install 'rljax\[tpu\]'"):
        tpu.find_devices("v5e:2x2")


@pytest.mark.parametrize("name", ["nothing_like_this", "ranges"])
def test_an_experiment_without_a_program_is_refused(name):
    with pytest.raises(SystemExit, match=rf"build\(config\).*{name}.*addition"):
        tpu.main(["--experiment", name, "--topology", "v5e:2x2"])


def made_for(num_devices, flags=(), shape=None, **options):
    experiment = "addition" if shape is None else "train"
    made = subject.find_experiment(experiment, list(flags), shape)
    return subject.spread(made, jax.devices()[:num_devices], **options)


def test_prompts_that_do_not_divide_are_refused_or_replaced():
    with pytest.raises(ValueError, match=r"64 prompts .*multiple of 3.*take data=1\."):
        made_for(3)
    made = made_for(3, num_prompts=18, prompt_tokens=50)
    assert made.batches().tokens.shape == (20, 18, 50)
    assert made.batches().id.shape == (20, 18)
    assert dict(made.mesh.shape) == {"data": 3}


def test_flags_change_the_config_of_the_experiment():
    flags = ["--num-prompts", "6", "--d-model", "32"]
    made = subject.find_experiment("addition", flags)
    assert made.batches().tokens.shape[1] == 6
    assert made.model.config.d_model == 32


def test_a_known_shape_takes_the_place_of_the_model_and_large_ones_are_split():
    made = made_for(8, sizes="fsdp=4,tensor=2", shape="qwen2.5-0.5b")
    program = made.program()
    assert program.state.params["embed"]["embedding"].shape == (151936, 896)
    assert made.model.config.remat and made.model.config.dtype == "bfloat16"
    assert (made.mesh.shape["fsdp"], made.layout.update) == (4, mesh.ONLY_PROMPTS)
    assert made_for(8, shape="qwen2.5-0.5b").mesh.shape["fsdp"] == 8
    with pytest.raises(ValueError, match=r"2 key/value heads.*take data=4,tensor=2\."):
        made_for(8, sizes="tensor=4", shape="qwen2.5-0.5b")


def test_an_unknown_model_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match=r"qwen3-8b.*got 'qwen9'"):
        tpu.main(["--model", "qwen9", "--topology", "h100:1"])


def test_a_slice_has_chips_hosts_and_the_names_of_googles_api():
    one, many = chips.parse("v5e:2x4"), chips.parse("v5p:2x2x4")
    assert (one.num_chips, one.num_hosts, one.accelerator_type) == (8, 1, "v5litepod-8")
    # v5p is counted by cores, two of a chip.
    assert (many.num_chips, many.num_hosts, many.accelerator_type) == (16, 4, "v5p-32")
    assert chips.parse("h100:8").dollars_per_hour is None


def test_the_time_of_a_step_is_that_of_its_work_at_the_rates_of_the_chip():
    # By hand: 4e12 FLOPs at 1 TFLOP/s, 5 GB at 1 GB/s, 3 GB of links at 1 GB/s.
    chip = chips.Chip(1.0, 1.0, 1.0, 1.0, None)
    moved = {"update": roofline.Moved(3e9, times=100)}
    work = roofline.Work(1e12, 1e12, 3e12, 5e9, moved)
    sizes = tiny_program.program(CONFIG).sizes()
    found = roofline.estimate(work, sizes, chip, roofline.Shares())
    assert found.seconds == {
        "prefill": 1.0,
        "decode": 5.0,
        "update": 3.0,
        "collectives: update": 3.0,
    }
    halved = roofline.estimate(work, sizes, chip, roofline.Shares(0.5, 0.5, 0.5))
    assert halved.step == 2 * found.step == 24.0
    late = roofline.estimate(work, sizes, chip, roofline.Shares(latency=1e-2))
    assert late.step == found.step + 100 * 1e-2


def test_collectives_count_what_a_chip_receives_in_the_phase_they_are_of():
    def one(kind, op_name, times=1):
        return hlo.Collective(kind, "", 10, times, op_name)

    found = [
        one("all-gather", "jit(steps)/while/body/sample/decode/while/body/dot", 7),
        one("all-reduce", "jit(steps)/while/body/update/transpose(jvp(x))/dot"),
        one("reduce-scatter", "jit(steps)/while/body/update/y"),
        one("all-reduce", "jit(steps)/while/body/add"),
    ]
    # A reduce-scatter's result comes once from each of the 3 others.
    assert roofline.received(found, 4, steps=1) == {
        "decode": (70, 7),
        "update": (20 + 30, 2),
        "other": (20, 1),
    }
    assert roofline.received(found, 4, steps=2)["update"] == (25, 1)


def test_collectives_by_arithmetic_are_those_of_the_mesh():
    # 1,000 parameters in bfloat16; 4 prompts x 2 samples x (3 + 5) tokens, 6 layers.
    sizes = tiny_program.program(CONFIG).sizes()
    decoder = dataclasses.replace(
        sizes.decoder, dtype="bfloat16", d_model=10, num_layers=6
    )
    sizes = sizes._replace(
        decoder=decoder,
        num_prompts=4,
        num_samples=2,
        prompt_tokens=3,
        max_tokens=5,
        num_rows=8,
        num_passes=1,
        num_minibatches=1,
        num_microbatches=1,
    )

    def found(num_microbatches=1, **axes):
        cut = sizes._replace(num_microbatches=num_microbatches)
        return links.by_arithmetic(cut, 1000, axes)

    assert found(fsdp=1) == {}
    assert found(data=4) == {"update": (8000, 1)}
    # Each piece gathers the weights twice and brings gradients of 4 bytes back.
    gathered = {"prefill": (2000, 42), "sample": (2000, 7)}
    assert found(fsdp=4) == gathered | {"update": (8000, 126)}
    # A sum of 20 bytes per token comes twice: for 4 of 5 tokens of the 4 rows that two
    # chips share, in 13 places. In the update each chip has a prompt of its own.
    halves = {"prefill": (1000, 42), "sample": (1000, 7), "decode": (13 * 640, 52)}
    assert found(fsdp=2, tensor=2) == halves | {"update": (8000, 126)}
    # With 2 prompts at a time it has not: half of the weights in each of 2 pieces, and
    # the sums of 48 places for all 4 * 5 + 2 * 3 tokens.
    apart = {"update": (2 * 4000 + 48 * 26 * 40, 2 * 126 + 2 * 48)}
    assert found(2, fsdp=2, tensor=2) == halves | apart


def test_experts_stay_apart_while_sampling_by_arithmetic():
    # 6 layers of 2 experts with 3 matrices of 10 x 2 are 720 of 1,000 parameters.
    sizes = tiny_program.program(CONFIG).sizes()
    experts = Experts(num=2, num_chosen=1, d_ff=2)
    decoder = dataclasses.replace(
        sizes.decoder, dtype="bfloat16", d_model=10, num_layers=6, experts=experts
    )
    sizes = sizes._replace(decoder=decoder, num_prompts=2, num_samples=2, num_rows=4)
    axes = {"expert": 2}
    assert roofline.sampled_parameters(decoder, 1000, axes) == 280 + 360
    assert roofline.sampled_parameters(decoder, 1000, {"fsdp": 2}) == 1000
    found = links.by_arithmetic(sizes._replace(max_tokens=3), 1000, axes)
    assert found["sample"] == (2 * 640, 7)
    # For 2 of 3 tokens, in 6 layers, the 4 rows of 20 bytes come and go.
    assert found["decode"] == (2 * 6 * 2 * 4 * 20, 2 * 6 * 2)
    assert found["update"].bytes == 8 * 1000


def test_the_scopes_of_the_phases_are_in_the_program():
    program = tiny_program.program(CONFIG)
    text = (
        program.fused().lower(program.state, program.prompts).as_text(debug_info=True)
    )
    for phase in roofline.PHASES:
        assert f"{phase}/" in text, phase


def test_a_model_that_cannot_fit_is_refused_before_it_is_compiled():
    # 8B in float32 with two moments is 96 GB; v5e:2x2 has 63.
    made = made_for(4, ["--remat", "layers"], shape="llama-3.1-8b")
    program = made.program()
    place, sizes = chips.parse("v5e:2x2"), program.sizes()
    size = 4 * 8_030_261_248
    stored = memory.of_program(program)
    assert stored[:2] == memory.of_shape(sizes.decoder)[:2] == (size // 4, size)
    needed = memory.by_arithmetic(sizes, {"fsdp": 4}, stored)
    assert needed.state == pytest.approx(3 * size / 4, rel=1e-3)
    text = memory.refusal(sizes, stored, place, needed.state, "state")
    assert "15.75 GiB on v5e:2x2, but it needs 22.4 GiB (state)" in text
    assert "v5p:2x2x4" in text and "v5e:2x4," not in text


def test_without_the_plugin_gpus_are_planned_by_arithmetic(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpu, "compiler", lambda: None)
    file = tmp_path / "report.json"
    flags = ["--model", "qwen2.5-0.5b", "--num-prompts", "16", "--max-tokens", "64"]
    tpu.main(["--topology", "h100:8", "--json", str(file), *flags])
    assert "by arithmetic" in capsys.readouterr().out
    found = json.loads(file.read_text())
    assert found["fits"] and "memory_per_device" not in found
    assert found["num_parameters"] == 494_032_768
    seconds = found["roofline"]["at_peak"]["seconds"]
    moved = {f"collectives: {phase}" for phase in ("sample", "prefill", "update")}
    assert set(seconds) == {"prefill", "decode", "update"} | moved


@pytest.mark.slow
def test_with_the_plugin_xla_compiles_for_gpus_that_are_not_there():
    if gpu.compiler() is None:
        pytest.skip("jax's CUDA plugin is not installed (tpu/gpu.py says how)")
    place = mesh.make(gpu.devices(8))
    found = tpu.compile_on(tiny_program.program(CONFIG)._replace(place=place))
    assert found["device_kind"].startswith("NVIDIA H100")
    # All of the state at least, and gradients that meet as in the test of four chips.
    assert found["memory_per_device"]["peak"] > 3 * 4 * 2816
    assert found["collectives"]["all-reduce"]["bytes"] >= K * 4 * 2816


@pytest.mark.slow
def test_half_a_billion_parameters_compile_for_eight_chips(tmp_path):
    # The bar of CI: 71 s of CPU and a peak of 2.29 GiB when it was set.
    pytest.importorskip("libtpu")
    flags = [
        "--algorithm",
        "fade",
        "--num-prompts",
        "16",
        "--num-samples",
        "4",
        "--max-tokens",
        "16",
    ]
    options = tpu.Options(
        topology="v5e:2x4", mesh="fsdp=8", model="qwen2.5-0.5b", prompt_tokens=64
    )
    found = tpu.plan_for(options, flags)
    assert found["fits"] and found["memory_per_device"]["peak"] < 2.6 * 2**30
    # A third of the weights, and of each moment, would be 1.8 GiB on every chip.
    assert found["memory_per_device"]["arguments"] < 0.75 * 2**30
    assert found["moved_per_step"]["update"]["bytes"] > 0
    # In bfloat16 prefill, decoding, forward and backward pass gather the layers, and
    # prefill and update the embedding. Parts of gathers counted whole would be 10.
    weights = found["parameter_bytes"] / 2
    assert 3 * weights < found["collectives"]["all-gather"]["bytes"] < 4 * weights
    report.show(found)
