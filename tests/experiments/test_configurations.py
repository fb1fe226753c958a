"""Every number of a configuration has a range, checked before anything is made."""

import dataclasses
import math
import pathlib
import re
import subprocess
import sys
import typing

import hypothesis
import pytest
from hypothesis import strategies as st

from experiments import addition, cli, compare, ranges, sweep, train
from rljax import experiment

EXPERIMENTS = {
    "addition": (addition.Config, ranges.addition),
    "train": (train.Config, train.check),
    "compare": (sweep.Config, compare.check),
}

# What people, scripts and sweeps really pass, and what breaks arithmetic and indices.
SIZES = st.sampled_from([-(2**70), -1, 0, 1, 2, 3, 7, 8, 64, 255, 10**6, 2**31, 2**70])
NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-50, 1e39, math.nan, math.inf]),
    st.floats(),
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", "{question}", "{", "\udcff", "fade,fade", "1e-3,", ",", "nan"]
    ),
    st.text(max_size=8),
)
OTHERS = st.sampled_from([None, True, "3", "0.1", [], (1,), 1j, 2.5, len, 1, b""])


def mostly(field, hint):
    """Values of a field's own kind, and one time in five of any."""
    kinds = {hint, *typing.get_args(hint)}
    if typing.get_origin(hint) is typing.Literal:
        own = st.sampled_from([*typing.get_args(hint), "else"])
    elif str in kinds:
        own = TEXTS
    elif pathlib.Path in kinds:
        own = st.sampled_from([None, pathlib.Path("nowhere")])
    else:
        own = SIZES if int in kinds else NUMBERS
    return st.one_of(own, own, own, own, OTHERS)


def configs(make, changed=3):
    """The default configuration with a few fields changed."""
    hints = typing.get_type_hints(make)
    change = st.sampled_from(dataclasses.fields(make)).flatmap(
        lambda field: st.tuples(st.just(field.name), mostly(field, hints[field.name]))
    )
    changes = st.lists(change, min_size=1, max_size=changed).map(dict)
    return changes.map(lambda c: make(**c))


def three_parts(message):
    """What must hold, what came, what to do: after the last semicolon."""
    must, _, advice = message.rpartition(";")
    return (
        re.search(r"\bmust\b", must) and " got " in must and advice.endswith((".", "?"))
    )


@pytest.mark.parametrize("make, check", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_any_configuration_is_taken_or_refused_by_flag_in_three_parts(make, check):
    flags = [ranges.flag(field.name) for field in dataclasses.fields(make)]

    @hypothesis.settings(max_examples=300)
    @hypothesis.given(configs(make))
    def fuzz(config):
        try:
            check(config)
        except ValueError as error:
            message = str(error)
            assert three_parts(message), message
            assert any(flag in message for flag in flags), message

    fuzz()


@pytest.mark.parametrize("make, check", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_every_number_of_every_configuration_refuses_what_is_none(make, check):
    # A field that has no range would take NaN, or raise KeyError.
    hints = typing.get_type_hints(make)
    for field in dataclasses.fields(make):
        for wrong in (math.nan, True, b"1", [1]):
            if wrong is True and hints[field.name] is bool:
                continue
            with pytest.raises(ValueError, match=f"{ranges.flag(field.name)} must"):
                check(make(**{field.name: wrong}))


FLAGS = {
    "addition": (
        "--learning-rate nan",
        "--learning-rate inf",
        "--learning-rate 0",
        "--gradient-clip -1",
        "--gradient-clip 0",
        "--seed -1",
        "--num-samples 1",
        "--num-validation 0",
        "--num-minibatches 0",
        "--num-minibatches -1",
        "--num-lengths 0",
        "--num-lengths 3",
        "--temperature 0",
        "--forget 1.5",
        "--max-tokens 0",
        "--evaluate-every 0",
        "--steps-per-dispatch 3",
        "--num-test 900000",
        "--num-heads 3",
    ),
    "train": (
        "--learning-rate nan",
        "--num-samples 1",
        "--num-minibatches 3",
        "--num-passes 0",
        "--draw-prompts 7",
        "--target-kl -1",
        "--timeout 0",
        "--template x",
        "--needle \udcff",
        "--algorithm gropo",
        "--algorithm lfu",
        "--algorithm.clip -1",
        "--num-test 9999",
    ),
    "compare": (
        "--tune 1e-3,nan",
        "--tune fast",
        "--levels 2",
        "--seeds 0",
        "--warm-steps 0",
        "--num-validation 7",
        "--algorithms fade,fade",
        "--slip nan",
    ),
}
STARTS = {
    "addition": lambda: cli.main(
        "addition", addition.build, addition.Config(), addition.QUICK, "Addition."
    ),
    "train": train.main,
    "compare": lambda: cli.start(
        *("compare", compare.main, sweep.Config()),
        dataclasses.replace(sweep.Config(), **compare.QUICK),
    ),
}


@pytest.mark.parametrize(
    "name, flags", [(name, flags) for name in FLAGS for flags in FLAGS[name]]
)
def test_the_command_line_refuses_by_flag_and_makes_no_folder(
    name, flags, tmp_path, monkeypatch, compilations
):
    # After the warm start it would be too late: the folder could then not be used.
    run_dir = tmp_path / "run"
    flag, value = flags.split()
    argv = [name, "--quick", "--no-compilation-cache", "--run-dir", str(run_dir)]
    monkeypatch.setattr(sys, "argv", [*argv, f"{flag}={value}"])
    with pytest.raises(SystemExit) as stopped:
        STARTS[name]()
    message, _, hint = str(stopped.value.code).rpartition("\n")
    assert message.startswith("error: ") and flag in message, message
    assert three_parts(message), message
    assert "RLJAX_TRACEBACK" in hint
    assert not run_dir.exists() and not compilations


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--learning-rate nan", "--num-samples 1"])
def test_a_process_ends_so_too(flags, tmp_path):
    command = [sys.executable, "-m", "experiments.addition", *flags.split()]
    ended = subprocess.run(
        [*command, "--run-dir", tmp_path / "run"],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: {flags.split()[0]} must lie in")
    assert "Traceback" not in ended.stderr and not (tmp_path / "run").exists()


FEW = {
    "num_layers": st.integers(1, 2),
    "d_model": st.integers(2, 9),
    "num_heads": st.integers(1, 4),
    "warm_steps": st.integers(0, 4),
    "warm_prompts": st.integers(1, 3),
    "num_steps": st.integers(1, 4),
    "steps_per_dispatch": st.integers(1, 3),
    "num_prompts": st.integers(1, 8),
    "num_samples": st.integers(1, 6),
    "max_tokens": st.integers(1, 20),
    "num_minibatches": st.integers(1, 3),
    "num_microbatches": st.integers(1, 3),
    "num_lengths": st.integers(1, 3),
    "num_slots": st.none() | st.integers(1, 99),
    "num_validation": st.integers(1, 9),
    "num_test": st.integers(1, 9),
    "evaluate_every": st.integers(1, 9),
    "temperature": st.sampled_from([0.5, 1.0]),
}


def taken(config):
    try:
        ranges.addition(config)
    except ValueError:
        return False
    return True


@pytest.mark.slow
def test_what_the_check_takes_can_be_traced_in_every_stage():
    # Traced, not compiled: what the check forgets would be refused here, too late.
    @hypothesis.settings(
        max_examples=3, suppress_health_check=[hypothesis.HealthCheck.filter_too_much]
    )
    @hypothesis.given(
        st.fixed_dictionaries(FEW)
        .map(lambda numbers: addition.Config(**numbers))
        .filter(taken)
    )
    def fuzz(config):
        stages = addition.build(config)
        assert [one.name for one in stages] == ["warm start", "rl"][-len(stages) :]
        for one in stages:
            experiment.require_traced(dataclasses.replace(one, mesh=None))

    fuzz()
