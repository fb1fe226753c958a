"""Runs that crash, are stopped or killed, or fill the disk, and go on from there."""

import dataclasses
import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from toy_run import go_silently as go
from toy_run import records

from rljax import data
from rljax.run import checkpoint, fault, record, train
from rljax.types import Prompts


@pytest.mark.parametrize(("index", "at"), [(0, 0), (0, 1), (1, 0), (1, 1), (1, 3)])
def test_a_run_that_crashed_goes_on_bit_for_bit(tmp_path, whole, index, at):
    # (1, 0) is within the change of phases: `begin` applied twice would add 2 to b.
    run_dir = tmp_path / "run"
    with pytest.raises(toy_run.Crash):
        go(run_dir, phases=toy_run.disturbed(index, at, toy_run.crash))
    state = go(run_dir, resume=True)
    assert toy_run.outcome(state, run_dir) == whole[1]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_steps_after_the_checkpoint_are_done_and_recorded_again(tmp_path, whole, every):
    run_dir = tmp_path / "run"
    with pytest.raises(toy_run.Crash):
        go(
            run_dir,
            phases=toy_run.disturbed(1, 3, toy_run.crash),
            checkpoint_every=every,
        )
    before = len(records(run_dir, "event"))
    with open(run_dir / record.FILE, "ab") as file:
        file.write(b'{"kind": "st')
    state = go(run_dir, resume=True, checkpoint_every=every)
    assert toy_run.outcome(state, run_dir) == whole[1]
    assert len(records(run_dir, "event")) == before + 1  # run/started


def test_a_finished_run_resumes_to_its_end(tmp_path, whole):
    run_dir = tmp_path / "run"
    go(run_dir)

    def never(state, prompts):
        raise AssertionError("a step was run")

    state = go(run_dir, resume=True, phases=toy_run.phases(run=never))
    assert toy_run.outcome(state, run_dir) == whole[1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_corrupt_newest_checkpoint_costs_only_its_steps(tmp_path, whole):
    run_dir = tmp_path / "run"
    with pytest.raises(toy_run.Crash):
        go(run_dir, phases=toy_run.disturbed(1, 3, toy_run.crash), keep=3)
    newest = run_dir / "checkpoints" / "00000010"
    for file in (newest / "state" / "d").iterdir():  # so small that it is all there
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    state = go(run_dir, resume=True, keep=3)
    assert toy_run.outcome(state, run_dir) == whole[1]
    events = records(run_dir, "event", "event", "step")
    assert ("checkpoint/corrupt", 8) in events
    assert newest.exists()  # written again
    gc.collect()  # what orbax leaves of reads beside one that failed


@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_leaves_with_its_code(tmp_path, whole, by, code):
    def kill():
        os.kill(os.getpid(), signal.Signals[by])
        time.sleep(0.2)  # the thread that hears of it

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run_dir = tmp_path / "run"
    with pytest.raises(train.Stopped) as stopped:
        # No checkpoint is due: the one of the signal is after the dispatch it came in.
        go(run_dir, phases=toy_run.disturbed(1, 1, kill), checkpoint_every=100)
    assert stopped.value.code == code
    found = checkpoint.newest(run_dir / "checkpoints")
    assert found.info["step"] == 8
    ((name, message),) = records(run_dir, "event", "event", "message")[1:]
    assert name == "run/stopped"
    assert f"by {by} after step 8; saved in {found.path}" in message
    after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert after == handlers
    state = go(run_dir, resume=True, checkpoint_every=100)
    assert toy_run.outcome(state, run_dir) == whole[1]


@pytest.mark.parametrize("call", [0, 3])
def test_a_signal_in_an_evaluation_is_heard(tmp_path, whole, call):
    # The first evaluation is before the phase's first dispatch, where `begin` is
    # done: saving there would apply it twice. The last is after the last dispatch.
    calls = []

    def evaluate(state):
        calls.append(0)
        if len(calls) == call + 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return toy_run.evaluate(state)

    phases = toy_run.phases()
    phases[1] = dataclasses.replace(phases[1], evaluate=evaluate)
    run_dir = tmp_path / "run"
    with pytest.raises(train.Stopped):
        go(run_dir, phases=phases)
    assert toy_run.outcome(go(run_dir, resume=True), run_dir) == whole[1]


def test_a_second_ctrl_c_leaves_at_once(tmp_path):
    # The dispatch it would have to wait for takes a minute.
    program = """if True:
        import sys, time, toy_run
        def run(state, prompts):
            print("running", flush=True)
            time.sleep(60)
        toy_run.go(sys.argv[1], phases=toy_run.phases(run=run))
    """
    with _python(program, tmp_path / "run") as process:
        while b"running" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        while b"Ctrl-C leaves at once" not in process.stdout.readline():
            pass
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert time.monotonic() - start < 5


def _python(program, *args):
    tests = pathlib.Path(__file__).parents[1] / "support"
    flags = os.environ["XLA_FLAGS"].split()
    env = os.environ | {
        "PYTHONPATH": f"{tests}:{tests.parent}",
        "XLA_FLAGS": " ".join(flag for flag in flags if "device" not in flag),
        "COLUMNS": "200",
    }
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, args)],
        stdout=subprocess.PIPE,
        env=env,
    )


def _sweep(root, first, step):
    program = "import sys, toy_run; toy_run.sweep(sys.argv[1], *map(int, sys.argv[2:]))"
    with _python(program, root, first, step) as process:
        return json.loads(process.communicate()[0])


def test_a_run_killed_at_one_file_operation_goes_on_bit_for_bit(tmp_path):
    result = _sweep(tmp_path, 52, 1000)
    assert result["tried"] == [52]
    assert result["wrong"] == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10))
def test_a_run_killed_at_any_file_operation_goes_on_bit_for_bit(tmp_path, first):
    # A tenth of the operations, of which there are some hundred.
    result = _sweep(tmp_path, first, 10)
    assert len(result["tried"]) >= 8
    assert result["wrong"] == []


_LIMITED = """if True:
    import resource, sys, toy_run
    class Limited(toy_run.Stream):
        def __next__(self):
            # While steps 7 to 10 are given out, files may be 1 kB long.
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            soft = 1000 if self.count in (1, 2) else hard
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            return super().__next__()
    phases = toy_run.phases()
    phases[1] = toy_run.dataclasses.replace(phases[1], stream=Limited(2))
    state = toy_run.go(sys.argv[1], phases=phases, keep=9)
    print("OUTCOME" + "|".join(toy_run.outcome(state, sys.argv[1])))
"""


def test_a_full_disk_does_not_stop_a_run(tmp_path, whole):
    # A real limit: every write past it fails in Python and in tensorstore alike.
    run_dir = tmp_path / "run"
    with _python(_LIMITED, run_dir) as process:
        output = process.communicate()[0].decode()
    assert process.returncode == 0
    assert output.split("OUTCOME")[1].strip().split("|") == whole[1]
    events = [name for (name,) in records(run_dir, "event", "event")]
    assert "checkpoint/failed" in events
    assert events.count("metrics/failed") == 1
    # The saves of steps 6 and 10 run while the limit comes and goes.
    names = {int(p.name) for p in (run_dir / "checkpoints").iterdir()}
    assert names - {6, 10} == {2, 4, 12}


def test_a_resumed_run_needs_the_data_it_was_started_with(tmp_path):
    # Other problems in the same file went on silently.
    def phases(prompts):
        streams = [
            data.stream(prompts, num_prompts=2, seed=i, steps_per_dispatch=toy_run.K)
            for i in range(2)
        ]
        return [
            dataclasses.replace(phase, stream=stream)
            for phase, stream in zip(toy_run.phases(), streams, strict=True)
        ]

    prompts = Prompts(
        tokens=np.arange(24, dtype=np.int32).reshape(8, 3),
        length=np.full(8, 3, np.int32),
        id=np.arange(8, dtype=np.int32),
        data={"answer": np.arange(8, dtype=np.uint8)[:, None]},
    )
    go(tmp_path / "run", phases=phases(prompts))
    go(tmp_path / "run", phases=phases(prompts), resume=True)
    others = prompts.replace(data={"answer": prompts.data["answer"] + np.uint8(1)})
    with pytest.raises(
        ValueError, match=r"prompts must be those .* of fingerprint \w+, got"
    ):
        go(tmp_path / "run", phases=phases(others), resume=True)


def test_a_torn_line_between_others_is_dropped_with_a_word(tmp_path, whole):
    run_dir = tmp_path / "run"
    with pytest.raises(toy_run.Crash):
        go(run_dir, phases=toy_run.disturbed(1, 2, toy_run.crash))
    first, *rest = (run_dir / record.FILE).read_bytes().splitlines(keepends=True)
    torn = b'{"kind": "st{"kind": "step"}\n'
    (run_dir / record.FILE).write_bytes(first + torn + b"".join(rest))
    state = go(run_dir, resume=True)
    assert toy_run.outcome(state, run_dir) == whole[1]
    messages = dict(records(run_dir, "event", "event", "message"))
    assert "line 2 of metrics.jsonl was not a record" in messages["metrics/dropped"]


@pytest.mark.parametrize("place", ["params", "optimizer"])
def test_a_checkpoint_with_nan_is_no_last_good_one(tmp_path, place):
    # The gate looks at gradients, not at what the optimiser makes of them.
    def run(state, prompts):
        state, found = toy_run.run(state, prompts)
        bad = jnp.where(state.step >= 7, jnp.nan, 1.0)
        if place == "params":
            w = state.params["w"] * bad
            return state.replace(params={**state.params, "w": w}), found
        moved = jax.tree.map(lambda x: x * bad.astype(x.dtype), state.optimizer)
        return state.replace(optimizer=moved), found

    phases = toy_run.phases(run=run)
    with pytest.raises(fault.RunFault) as raised:
        go(tmp_path / "run", phases=phases)
    message = str(raised.value)
    assert f"must hold finite numbers, but {place}[" in message
    assert "after step 8; last good checkpoint: " in message
    assert "00000006" in message
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found.info["step"] == 6


def test_a_run_does_not_begin_with_nan(tmp_path):
    state = toy_run.make_state()
    state = state.replace(params={**state.params, "b": jnp.full(5, jnp.inf)})
    with pytest.raises(ValueError, match=r"but params\['b'\] does not at the start"):
        go(tmp_path / "run", state=state)


def test_resume_of_nothing_starts_anew(tmp_path, whole):
    (tmp_path / "made").mkdir()  # killed before the configuration was written
    (tmp_path / "torn").mkdir()  # and in the middle of it
    (tmp_path / "torn" / "config.json.new").write_text('{"se')
    for name in ("absent", "made", "torn"):
        state = go(tmp_path / name, resume=True)
        assert toy_run.outcome(state, tmp_path / name) == whole[1]
