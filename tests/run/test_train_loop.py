"""The run loop: phases, evaluations, records, faults. The run is that of toy_run."""

import dataclasses
import time

import jax.numpy as jnp
import numpy as np
import pytest
import toy_run
from toy_run import go_silently as go
from toy_run import records

from rljax.metric import Fault
from rljax.run import checkpoint, fault


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


def test_checkpoints_may_lie_elsewhere(tmp_path, whole):
    # A path as text, as one in a bucket is.
    where = str(tmp_path / "bucket" / "of the run")
    phases = toy_run.disturbed(1, 2, toy_run.crash)
    with pytest.raises(toy_run.Crash):
        go(tmp_path / "run", phases=phases, checkpoint_dir=where)
    assert not (tmp_path / "run" / "checkpoints").exists()
    state = go(tmp_path / "run", resume=True, checkpoint_dir=where)
    assert toy_run.outcome(state, tmp_path / "run") == whole[1]
    assert checkpoint.newest(where).info["step"] == 12
    assert records(tmp_path / "run", "event", "message")[-1] != ("from the start",)


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


def test_a_fault_stops_the_run_and_keeps_the_checkpoint_before(tmp_path):
    def run(state, prompts):
        state, found = toy_run.run(state, prompts)
        bad = jnp.where(state.step == 8, jnp.array([0.0, 2.0]), 0.0)
        return state, {**found, "policy/fault/example": Fault(bad)}

    with pytest.raises(fault.RunFault) as raised:
        go(tmp_path / "run", phases=toy_run.phases(run=run))
    message = str(raised.value)
    assert "policy/fault/example must be 0 but was 2.0 in step 8" in message
    assert "steps 7 to 8" in message
    assert "00000006" in message
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found.info["step"] == 6
    # What led to it can be read.
    assert len(records(tmp_path / "run", "step")) == 8


def test_a_fault_that_is_not_a_number_is_one(tmp_path):
    # NaN > 0 is false.
    def run(state, prompts):
        state, found = toy_run.run(state, prompts)
        return state, {**found, "fault/example": Fault(jnp.array([0.0, jnp.nan]))}

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
        go(tmp_path / "a", phases=toy_run.disturbed(1, 1, ends))
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

    stream = toy_run.Disturbed(2, 2, toy_run.crash)
    with pytest.raises(toy_run.Crash):
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
