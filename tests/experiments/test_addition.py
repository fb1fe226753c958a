"""The demo as a user starts it: a process of its own and its run folder."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260k"
GSM8K = SHARED / "data" / "gsm8k_test.jsonl"

TINY = (  # noqa: SIM905
    "--quick --warm-steps 24 --num-steps 16 --steps-per-dispatch 4 --checkpoint-every 4"
    " --num-layers 1 --d-model 16 --num-heads 2 --d-ff 32 --num-validation 16"
    " --num-test 16 --evaluate-every 8"
).split()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One compilation cache for all runs of this file."""
    return tmp_path_factory.mktemp("cache")


def start(cache, *flags, experiment="addition", **kwargs):
    env = dict(os.environ, XDG_CACHE_HOME=str(cache), JAX_PLATFORMS="cpu")
    # One device, as on a user's machine.
    ours = os.environ["XLA_FLAGS"].split()
    env["XLA_FLAGS"] = " ".join(flag for flag in ours if "device" not in flag)
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{experiment}", *map(str, flags)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def finish(process):
    out, _ = process.communicate(timeout=300)
    return process.returncode, out


def steps(folder):
    """(phase, step) of every training step on record."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:  # torn by a kill
            continue
    return [(r["phase"], r["step"]) for r in records if r["kind"] == "step"]


def weights(folder):
    return (folder / "policy" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    code, out = finish(start(cache, *TINY, "--run-dir", folder))
    assert code == 0, out
    return folder, out


def test_a_run_leaves_everything_the_readme_names(whole):
    folder, out = whole
    for name in (
        "config.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "report.html",
        "policy/model.safetensors",
        "policy/config.json",
        "policy/tokenizer.json",
    ):
        assert (folder / name).exists(), name
    for shown in ("pass@1", "pass@8", "greedy", "by carries", str(folder)):
        assert shown in out
    recorded = steps(folder)
    assert recorded == sorted(set(recorded), key=lambda s: (s[0] != "warm start", s[1]))
    assert len(recorded) == 24 + 16


def test_sampler_and_learner_agree_in_every_step(whole):
    folder, _ = whole
    records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    gaps = [
        r["gap/sampler_learner_max"] for r in records if "gap/sampler_learner_max" in r
    ]
    assert len(gaps) == 16
    assert max(gaps) < 1e-5  # nats; a wrong position or mask gives 1e-2 and more


@pytest.mark.slow
@pytest.mark.parametrize(
    "phase, step", [("warm start", 4), ("warm start", 24), ("rl", 28), ("rl", 36)]
)
def test_a_killed_run_resumes_to_the_same_bits(cache, whole, tmp_path, phase, step):
    folder = tmp_path / "run"
    process = start(cache, *TINY, "--run-dir", folder)
    deadline = time.monotonic() + 240
    # The step is written, its checkpoint is not, or is just being written.
    while (phase, step) not in steps(folder) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "policy").exists(), "the kill came too late to test anything"
    code, out = finish(start(cache, *TINY, "--run-dir", folder, "--resume"))
    assert code == 0, out
    assert weights(folder) == weights(whole[0])
    assert steps(folder) == steps(whole[0])


@pytest.mark.slow
def test_sigterm_saves_and_leaves_and_resume_goes_on(cache, whole, tmp_path):
    folder = tmp_path / "run"
    process = start(cache, *TINY, "--run-dir", folder)
    while len(steps(folder)) < 8 and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    code, out = finish(process)
    assert code == 128 + signal.SIGTERM, out
    assert "resume" in out
    assert list((folder / "checkpoints").glob("0*/commit_success.txt"))
    code, out = finish(start(cache, *TINY, "--run-dir", folder, "--resume"))
    assert code == 0, out
    assert weights(folder) == weights(whole[0])


@pytest.mark.slow
def test_a_run_folder_in_use_is_refused_before_compiling(cache, whole):
    code, out = finish(start(cache, *TINY, "--run-dir", whole[0]))
    assert code == 1
    assert "resume" in out and "run folder" in out and "Traceback" not in out
    code, out = finish(
        start(cache, *TINY, "--run-dir", whole[0], "--resume", "--seed", 1)
    )
    assert code == 1
    assert "seed" in out and "Traceback" not in out


BAD = {
    "group of one": (["--num-samples", "1"], "--num-samples"),
    "prompts not divisible": (["--num-prompts", "15"], "--num-minibatches"),
}


@pytest.mark.slow
@pytest.mark.parametrize("flags, named", BAD.values(), ids=BAD)
def test_bad_input_gives_one_clear_error(cache, tmp_path, flags, named):
    code, out = finish(start(cache, *TINY, *flags, "--run-dir", tmp_path / "run"))
    assert code == 1
    assert named in out and "Traceback" not in out, out


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.exists(), reason="shared data absent")
def test_gsm8k_goes_through_tokenizer_sampler_verifier_and_update(cache, tmp_path):
    # A 260k-parameter story teller solves nothing: what must work is the path.
    code, out = finish(
        start(
            cache,
            *f"--quick --model {STORIES} --data {GSM8K} --answer-after ####"
            " --verifier last-number --max-prompt-tokens 200 --max-tokens 24"
            " --num-steps 2 --steps-per-dispatch 1 --num-prompts 8 --num-samples 4"
            " --num-validation 8 --num-test 8 --learning-rate 1e-4".split(),
            "--run-dir",
            tmp_path / "run",
            experiment="train",
        )
    )
    assert code == 0, out
    assert "dropped" in out  # prompts over the limit are counted, not cut
    assert len(steps(tmp_path / "run")) == 2
