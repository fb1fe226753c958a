"""The host loop: phases, resuming, stopping, faults. The run is that of toy_run."""

import dataclasses
import datetime
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from rich.console import Console

from rljax import checkpoint, fault, folder, metrics, train


def go(run_dir, **options):
    return toy_run.go(run_dir, console=Console(file=io.StringIO()), **options)


def records(run_dir, kind, *names):
    found = metrics.read_metrics(run_dir / metrics.FILE)
    return [tuple(r[n] for n in names) for r in found if r["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, and its outcome."""
    run_dir = tmp_path_factory.mktemp("train") / "whole"
    return run_dir, toy_run.outcome(go(run_dir), run_dir)


class Disturbed(toy_run.Stream):
    """A stream that calls `disturb` before it gives its `at`-th item."""

    def __init__(self, seed, at, disturb):
        super().__init__(seed)
        self.at, self.disturb = at, disturb

    def __next__(self):
        if self.count == self.at:
            self.disturb()
        return super().__next__()


class Crash(Exception):
    pass


def crash():
    raise Crash


def disturbed(index, at, disturb):
    phases = toy_run.phases()
    stream = Disturbed(phases[index].stream.seed, at, disturb)
    phases[index] = dataclasses.replace(phases[index], stream=stream)
    return phases


def test_each_step_is_recorded_once_with_its_phase(whole):
    run_dir, _ = whole
    steps = records(run_dir, "step", "step", "phase")
    want = [(i, "warm start" if i <= toy_run.NUM_WARM else "rl") for i in range(1, 13)]
    assert steps == want
    seconds = [s for (s,) in records(run_dir, "step", "seconds")]
    assert seconds == sorted(seconds)
    assert seconds[0] > 0


def test_evaluations_are_where_the_phase_starts_at_every_multiple_and_at_its_end(whole):
    # Every 3 steps in dispatches of 2: due at local steps 3, 6 (and the end, 8), so at
    # boundaries 4, 6, 8; the phase starts after 4 steps of the warm start, which has
    # no evaluation.
    run_dir, _ = whole
    assert records(run_dir, "evaluation", "step", "phase") == [
        (step, "rl") for step in (4, 8, 10, 12)
    ]


def test_a_phase_is_not_evaluated_at_its_start_if_the_one_before_was_at_its_end(
    tmp_path,
):
    phases = toy_run.phases(evaluate=toy_run.evaluate, evaluate_every=100)
    go(tmp_path / "run", phases=phases)
    assert records(tmp_path / "run", "evaluation", "step", "phase") == [
        (0, "warm start"),
        (4, "warm start"),
        (12, "rl"),
    ]


def test_an_evaluation_sees_the_state_of_its_step(tmp_path):
    seen = []

    def evaluate(state):
        seen.append((int(state.step), float(jnp.mean(state.params["w"]))))
        return {"mean": seen[-1][1]}

    phases = toy_run.phases(evaluate=evaluate, evaluate_every=2)
    go(tmp_path / "run", phases=phases)
    assert [step for step, _ in seen] == [0, 2, 4, 6, 8, 10, 12]
    # `reward/mean` is the mean of w after the step.
    rewards = dict(records(tmp_path / "run", "step", "step", "reward/mean"))
    for step, mean in seen[1:]:
        assert mean == pytest.approx(rewards[step], rel=1e-5)


def test_the_time_of_an_evaluation_is_no_time_of_a_step(tmp_path):
    # Of 24 tokens in a dispatch of a few ms, and half a second before it.
    def evaluate(state):
        time.sleep(0.5)
        return {}

    go(tmp_path / "run", phases=toy_run.phases(evaluate=evaluate))
    speeds = records(tmp_path / "run", "step", "time/tokens_per_second")
    assert max(speed for (speed,) in speeds) > 24 / 0.5


def test_the_final_state_is_saved_and_only_the_newest_are_kept(whole):
    run_dir, _ = whole
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["00000010", "00000012"]
    assert list((run_dir / "tensorboard").iterdir())


def test_checkpoints_are_at_multiples_and_the_ends_of_phases(tmp_path):
    go(tmp_path / "run", checkpoint_every=3, keep=9)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    # Local steps 3, 6 and the ends: 4 of the warm start; 4, 6, 8 of rl.
    assert [int(name) for name in names] == [4, 8, 10, 12]


def test_metrics_are_read_while_the_next_dispatch_runs(tmp_path):
    # A loop that waits for each dispatch would have written 2n steps when it starts
    # the n-th; this one has read all but the last, which the device still works on.
    written = []

    def run(state, prompts):
        written.append(len(records(tmp_path / "run", "step")))
        return toy_run.run(state, prompts)

    phases = toy_run.phases(run=run, evaluate=None)
    go(tmp_path / "run", phases=phases, checkpoint_every=100)
    # The end of the warm start, where a checkpoint is due, waits.
    assert written == [0, 0, 4, 4, 6, 8]


@pytest.mark.parametrize(("index", "at"), [(0, 0), (0, 1), (1, 0), (1, 1), (1, 3)])
def test_a_run_that_crashed_goes_on_bit_for_bit(tmp_path, whole, index, at):
    # (1, 0) is within the change of phases: `begin` applied twice would add 2 to b.
    run_dir = tmp_path / "run"
    with pytest.raises(Crash):
        go(run_dir, phases=disturbed(index, at, crash))
    state = go(run_dir, resume=True)
    assert toy_run.outcome(state, run_dir) == whole[1]


@pytest.mark.parametrize("every", [1, 3, 100])
def test_steps_after_the_checkpoint_are_done_and_recorded_again(tmp_path, whole, every):
    run_dir = tmp_path / "run"
    with pytest.raises(Crash):
        go(run_dir, phases=disturbed(1, 3, crash), checkpoint_every=every)
    before = len(records(run_dir, "event"))
    with open(run_dir / metrics.FILE, "ab") as file:
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


def test_a_corrupt_newest_checkpoint_costs_only_its_steps(tmp_path, whole):
    run_dir = tmp_path / "run"
    with pytest.raises(Crash):
        go(run_dir, phases=disturbed(1, 3, crash), keep=3)
    newest = run_dir / "checkpoints" / "00000010"
    (file,) = (newest / "state" / "ocdbt.process_0" / "d").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    state = go(run_dir, resume=True, keep=3)
    assert toy_run.outcome(state, run_dir) == whole[1]
    events = records(run_dir, "event", "event", "step")
    assert ("checkpoint/corrupt", 8) in events
    assert newest.exists()  # written again


@pytest.mark.parametrize(("by", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_saves_and_leaves_with_its_code(tmp_path, whole, by, code):
    def kill():
        os.kill(os.getpid(), signal.Signals[by])
        time.sleep(0.2)  # the thread that hears of it

    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    run_dir = tmp_path / "run"
    with pytest.raises(train.Stopped) as stopped:
        # No checkpoint is due: the one of the signal is after the dispatch it came in.
        go(run_dir, phases=disturbed(1, 1, kill), checkpoint_every=100)
    assert stopped.value.code == code
    found, _ = checkpoint.newest(run_dir / "checkpoints")
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
    tests = pathlib.Path(__file__).parent
    env = os.environ | {
        "PYTHONPATH": f"{tests}:{tests.parent}",
        "XLA_FLAGS": "",
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


def test_a_run_killed_at_some_file_operations_goes_on_bit_for_bit(tmp_path):
    result = _sweep(tmp_path, 7, 45)
    assert len(result["tried"]) >= 2
    assert result["wrong"] == []


@pytest.mark.slow
def test_a_run_killed_at_any_file_operation_goes_on_bit_for_bit(tmp_path):
    # A tenth of the operations, of which there are some hundred; by turns, day by day.
    today = datetime.datetime.now(datetime.UTC).toordinal()
    result = _sweep(tmp_path, today % 10, 10)
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


def test_a_fault_stops_the_run_and_keeps_the_checkpoint_before(tmp_path):
    def run(state, prompts):
        state, found = toy_run.run(state, prompts)
        bad = jnp.where(state.step == 8, jnp.array([0.0, 2.0]), 0.0)
        return state, {**found, "policy/fault/example": bad}

    with pytest.raises(fault.RunFault) as raised:
        go(tmp_path / "run", phases=toy_run.phases(run=run))
    message = str(raised.value)
    assert "policy/fault/example must be 0 but was 2.0 in step 8" in message
    assert "steps 7 to 8" in message
    assert "00000006" in message
    found, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found.info["step"] == 6
    # What led to it can be read.
    assert len(records(tmp_path / "run", "step")) == 8


def test_a_fault_that_is_not_a_number_is_one(tmp_path):
    # NaN > 0 is false.
    def run(state, prompts):
        state, found = toy_run.run(state, prompts)
        return state, {**found, "fault/example": jnp.array([0.0, jnp.nan])}

    with pytest.raises(fault.RunFault, match=r"was nan in step 2 .* checkpoint: None"):
        go(tmp_path / "run", phases=toy_run.phases(run=run))


def test_too_many_refused_updates_in_a_row_stop_the_run(tmp_path):
    # Accepted up to step 5, then refused twice a step: 2, 4, 6, 8, ...
    def run(state, prompts):
        state, found = toy_run.run(state, prompts)
        steps = state.step - 1 + jnp.arange(2)
        refused = 2.0 * jnp.maximum(steps - 5, 0)
        return state, {**found, "update/refused_in_row": refused}

    phases = toy_run.phases(run=run)
    with pytest.raises(fault.RunFault) as raised:
        go(tmp_path / "run", phases=phases, max_refused=6)
    message = str(raised.value)
    assert "stopped after 6 refused updates in a row between steps 6 and 8" in message
    assert "00000006" in message


def test_a_folder_in_use_needs_resume(tmp_path):
    folder.open_run(tmp_path / "run", {"seed": 0}, resume=False)
    with pytest.raises(ValueError, match=r"pass --resume .* another --run-dir"):
        folder.open_run(tmp_path / "run", {"seed": 0}, resume=False)
    (tmp_path / "empty").mkdir()
    folder.open_run(tmp_path / "empty", {"seed": 0}, resume=False)


def test_resume_of_nothing_starts_anew(tmp_path, whole):
    (tmp_path / "made").mkdir()  # killed before the configuration was written
    for run_dir in (tmp_path / "absent", tmp_path / "made"):
        state = go(run_dir, resume=True)
        assert toy_run.outcome(state, run_dir) == whole[1]


def test_resume_with_another_configuration_names_the_fields(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Config:
        rate: float = 1e-3
        sizes: tuple = (1, 2)
        where: pathlib.Path = pathlib.Path("data")

    folder.open_run(tmp_path, Config(), resume=False)
    folder.open_run(tmp_path, Config(), resume=True)  # a tuple comes back as a list
    with pytest.raises(ValueError, match=r"rate: 0.001 there, 0.1 now\. Pass"):
        folder.open_run(tmp_path, Config(rate=0.1), resume=True)
    with pytest.raises(ValueError, match="extra: 1 there, nothing now; rate"):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"extra": 1, **json.loads(path.read_text())}))
        folder.open_run(tmp_path, Config(rate=0.1), resume=True)


def test_phases_that_cannot_run_are_refused(tmp_path):
    (warm, rl) = toy_run.phases()
    with pytest.raises(ValueError, match="num_steps must be a multiple"):
        dataclasses.replace(warm, num_steps=5)
    with pytest.raises(ValueError, match="evaluate_every must lie in"):
        dataclasses.replace(warm, evaluate_every=0)
    with pytest.raises(ValueError, match="different names"):
        go(tmp_path / "a", phases=[warm, warm])
    with pytest.raises(ValueError, match="keep must lie in"):
        go(tmp_path / "b", keep=0)
    go(tmp_path / "c", phases=[warm])
    with pytest.raises(ValueError, match="phases must be those"):
        go(tmp_path / "c", phases=[rl], resume=True)


def test_streams_and_loops_that_do_not_fit_are_refused(tmp_path):
    def ends():
        raise StopIteration

    with pytest.raises(ValueError, match=r"stream of phase 'rl' .* ended after 2"):
        go(tmp_path / "a", phases=disturbed(1, 1, ends))
    with pytest.raises(ValueError, match=r"must be f32\[2\].* of shape \(4,\)"):
        phases = toy_run.phases(stream=toy_run.Stream(1, steps=4))
        go(tmp_path / "b", phases=phases)


def test_the_state_may_have_another_structure_in_each_phase(tmp_path, whole):
    # The template of a restore must be that of the phase the checkpoint is in.
    def begin(state):
        state = toy_run.begin_rl(state)
        return state.replace(gate={"seen": jnp.int32(0)})

    def phases(**changes):
        warm, rl = toy_run.phases()
        return [warm, dataclasses.replace(rl, begin=begin, **changes)]

    stream = Disturbed(2, 2, crash)
    with pytest.raises(Crash):
        go(tmp_path / "run", phases=phases(stream=stream))
    state = go(tmp_path / "run", phases=phases(), resume=True)
    assert int(state.gate["seen"]) == 0
    np.testing.assert_array_equal(int(state.step), 12)


def test_the_event_of_the_start_says_what_ran(whole):
    run_dir, _ = whole
    ((name, command, versions, devices),) = records(
        run_dir, "event", "event", "command", "versions", "devices"
    )
    assert name == "run/started"
    assert command.startswith("python")
    assert {"python", "jax", "rljax"} <= versions.keys()
    assert "cpu" in devices
