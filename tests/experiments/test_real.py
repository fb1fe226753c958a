"""The experiment on a real model: killed for good, it goes on to the same bits."""

import hashlib
import os
import pathlib
import subprocess
import sys
import time

import pytest

from rljax.run import record as metrics

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "RLJAX_SMOLLM2" not in os.environ,
        reason="RLJAX_SMOLLM2 names no folder of SmolLM2-135M-Instruct",
    ),
]

ROOT = pathlib.Path(__file__).parents[2]
NUMBERS = (
    "--num-steps 3 --num-prompts 2 --num-samples 4 --num-microbatches 1"
    " --max-tokens 4 --checkpoint-every 1 --evaluate-every 3 --evaluation-batch 73"
)
# Only validation problems are asked: the test problems would take most of the time.
PROGRAM = """
import dataclasses
from experiments import cli, real

def build(config):
    (rl,) = real.build(config)
    return [dataclasses.replace(rl, evaluation=rl.evaluation._replace(test=None))]

cli.main("real", build, real.Config(), real.QUICK, "A run.")
"""
# Without the tests' flags, with which a model of this size computes for minutes.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}


def start(run_dir: pathlib.Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, "--run-dir", str(run_dir)]
    command += ["--model", os.environ["RLJAX_SMOLLM2"], *NUMBERS.split(), *more]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT
    )


def steps(run_dir: pathlib.Path) -> list[dict]:
    """The records of steps, without their times."""
    return [
        {k: v for k, v in record.items() if k != "seconds" and "time/" not in k}
        for record in metrics.read(run_dir / metrics.FILE)
        if record["kind"] == "step"
    ]


def weights(run_dir: pathlib.Path) -> str:
    file = run_dir / "policy" / "model.safetensors"
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_smollm2_killed_between_steps_learns_the_same_bits(tmp_path):
    # A state that is not saved (moments, FADE's averages, the order of the problems)
    # would show in the first step after the kill.
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait() == 0
    process = start(killed)
    while not any((killed / "checkpoints").glob("0*")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert len(steps(killed)) < 3
    assert start(killed, "--resume").wait() == 0
    assert steps(killed) == steps(whole)
    assert weights(killed) == weights(whole)
