"""A decoupled run from the command line: it resumes, and meshes change no number."""

import contextlib
import functools
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments import cli, train
from rljax.evaluate import kept
from rljax.run import record

SIZES = train.QUICK | {
    "num_samples": 2,
    "max_tokens": 2,
    "num_validation": 4,
    "num_test": 0,
    "evaluation_samples": 2,
    "schedule_steps": 4,
    "staleness": 2,
}
OWN = ("--mesh", "fsdp=4", "--sampler-mesh", "data=2,tensor=2")


def run(folder, monkeypatch, *flags, algorithm="tis", **changes):
    make = train.with_numbers(algorithm, train.Config)
    config = make(algorithm=algorithm, **SIZES | changes)
    start = ["train", "--run-dir", str(folder), "--no-compilation-cache"]
    monkeypatch.setattr(sys, "argv", [*start, *(flags or ("--mesh", "data=1"))])
    with contextlib.ExitStack() as resources:
        build = functools.partial(train.build, resources=resources)
        cli.main("train", build, config, config, "A run.")
    return load_file(folder / kept.LAST / "model.safetensors")


def lines(folder):
    """What must not depend on interruptions."""
    times = ("seconds", "time/tokens_per_second")
    return [
        {k: v for k, v in r.items() if k not in times}
        for r in record.read(folder / record.FILE)
        if r["kind"] != "event"
    ]


@pytest.mark.slow
def test_a_run_that_resumes_goes_on_with_the_rollouts_that_waited(
    tmp_path, monkeypatch
):
    # Sampled anew with the newest parameters, the two that waited would be others; a
    # stream that begins again with three batches would skip two.
    whole = run(tmp_path / "whole", monkeypatch, *OWN, num_steps=4)
    run(tmp_path / "parts", monkeypatch, *OWN, num_steps=2)
    parts = run(tmp_path / "parts", monkeypatch, *OWN, "--resume", num_steps=4)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, err_msg=name)
    steps = [r for r in lines(tmp_path / "whole") if r["kind"] == "step"]
    assert [r["samples/staleness"] for r in steps] == [0, 1, 2, 2]


@pytest.mark.slow
def test_a_sampler_of_its_own_changes_no_number(tmp_path, monkeypatch):
    apart = run(tmp_path / "apart", monkeypatch, *OWN)
    together = run(tmp_path / "together", monkeypatch)
    for name, value in together.items():
        np.testing.assert_allclose(apart[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_verifier_in_python_and_adapters_work_decoupled(tmp_path, monkeypatch):
    # The model is moved to the sampler once, its adapters at each step.
    changes = {"algorithm": "minpro", "verifier": "python", "lora_rank": 2}
    apart = run(tmp_path / "apart", monkeypatch, *OWN, **changes)
    together = run(tmp_path / "together", monkeypatch, **changes)
    for name, value in together.items():
        np.testing.assert_allclose(apart[name], value, atol=1e-5, err_msg=name)


def test_a_sampler_mesh_without_staleness_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"ahead of the learner.*--staleness 1"):
        run(tmp_path / "run", monkeypatch, *OWN, staleness=None)
    assert not (tmp_path / "run").exists()


def test_a_sampler_that_leaves_no_device_is_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"leave devices to the learner, got 8 of 8"):
        run(tmp_path / "run", monkeypatch, "--sampler-mesh", "data=8")


def test_several_steps_in_a_dispatch_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"needs steps_per_dispatch=1.*got 2"):
        run(tmp_path / "run", monkeypatch, *OWN, steps_per_dispatch=2)
