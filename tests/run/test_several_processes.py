"""Several processes train one run, and all stop when one of them does."""

import json
import os
import pathlib
import re
import shutil
import signal

import pytest
import several

from rljax.run import record

TOY = str(pathlib.Path(several.__file__).with_name("several_toy.py"))
pytestmark = pytest.mark.slow


def toy(run_dir, count=2, *, devices=2, each=(), resume=False):
    """Runs the toy; `each` are further arguments of each process."""
    common = [TOY, str(run_dir), *(["--resume"] if resume else [])]
    arguments = [[*common, *(each[i] if each else [])] for i in range(count)]
    return several.run(arguments, count, devices=devices)


def outcome(ended) -> str:
    """The digest of the last state, the same in all processes."""
    assert {one.code for one in ended} == {0}, "\n".join(one.text for one in ended)
    (digest,) = {re.search(r"outcome (\w+)", one.text)[1] for one in ended}
    return digest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing disturbed, of two processes, and its outcome."""
    run_dir = tmp_path_factory.mktemp("several") / "whole"
    return run_dir, outcome(toy(run_dir))


def steps(run_dir) -> list[int]:
    records = record.read(run_dir / record.FILE)
    return [r["step"] for r in records if r["kind"] == "step"]


def test_the_numbers_are_those_of_one_process(whole, tmp_path):
    # Shares of a batch taken for the whole one would give others.
    run_dir, digest = whole
    assert outcome(toy(tmp_path / "one", 1, devices=4)) == digest
    # Two writers of one file would tear lines, or write each step twice.
    assert steps(run_dir) == list(range(1, 13))
    (start,) = [
        r for r in record.read(run_dir / record.FILE) if r.get("event") == "run/started"
    ]
    assert len(start["processes"]) == 2
    assert len(list((run_dir / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (1, 4), (1, 1), (4, 1)])
def test_a_resume_is_exact_on_any_number_of_processes(whole, tmp_path, count, devices):
    run_dir, digest = whole
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000012")
    ended = toy(tmp_path / "run", count, devices=devices, resume=True)
    assert "00000010" in ended[0].text  # where it went on
    assert outcome(ended) == digest
    assert steps(tmp_path / "run") == list(range(1, 13))


def test_four_processes_train_as_two_do(whole, tmp_path):
    _, digest = whole
    assert outcome(toy(tmp_path / "run", 4, devices=2)) == digest


@pytest.mark.parametrize("count", [2, 4])
def test_a_signal_to_one_stops_all_at_the_same_step(whole, tmp_path, count):
    arguments = [TOY, str(tmp_path / "run"), "--disturb", "sleep:1"]
    with several.started(arguments, count) as processes:
        several.wait_for(tmp_path / "run.mark", processes[1])
        os.kill(processes[1].pid, signal.SIGTERM)
        ended = [several.end(one) for one in processes]
    assert {one.code for one in ended} == {128 + signal.SIGTERM}, ended
    # The second dispatch of the second phase was under way: steps 7 and 8.
    assert steps(tmp_path / "run") == list(range(1, 9))
    assert (tmp_path / "run" / "checkpoints" / "00000008").exists()
    assert outcome(toy(tmp_path / "run", resume=True)) == whole[1]


@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (4, 2)])
def test_a_killed_process_is_named_by_the_others(whole, tmp_path, count, victim):
    own = ["--disturb", f"kill:{victim}"]
    ended = toy(tmp_path / "run", count, each=[own] * count)
    assert ended.pop(victim).code == -signal.SIGKILL
    for other in ended:
        assert other.code == 1
        assert f"process {victim} of {count} (host" in other.text
        assert "start all processes again with --resume" in other.text
    assert outcome(toy(tmp_path / "run", resume=True)) == whole[1]


@pytest.mark.parametrize("victim", [0, 1])
def test_an_error_in_one_process_ends_all_with_its_text(tmp_path, victim):
    ended = toy(tmp_path / "run", each=[["--disturb", f"fail:{victim}"]] * 2)
    assert [one.code for one in ended] == [1, 1]
    assert "OSError: the disk is on fire" in ended[victim].text
    told = rf"process {victim} of 2 \(.*\) failed: OSError: the disk is on fire"
    assert re.search(told, ended[1 - victim].text)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            ["--seed", "1"],
            r"configuration must .* process 1 .* seed: 1 there, 0 here",
        ),
        (["--weights", "1"], r"the state to train from must .*\.params\['w'\]"),
    ],
)
def test_processes_that_differ_are_refused_by_name(tmp_path, other, told):
    for one in toy(tmp_path / "run", each=[[], other]):
        assert one.code == 1
        assert re.search(told, one.text), one.text
    # Before anything is written, where the configuration tells; before a step, else.
    assert not (tmp_path / "run" / record.FILE).exists()


def test_a_state_of_each_process_alone_is_refused(tmp_path):
    # Each would train on its own, and the leader's be taken for the run's.
    for one in toy(tmp_path / "run", each=[["--local"]] * 2):
        assert one.code == 1
        assert re.search(r"must lie on devices of all 2 .* \.params\['b'\]", one.text)


def test_another_version_of_the_code_is_refused_by_its_file(tmp_path):
    shutil.copytree(several.ROOT / "rljax", tmp_path / "copy" / "rljax")
    with open(tmp_path / "copy" / "rljax" / "loss" / "kl.py", "a") as file:
        file.write("# another version\n")
    own = ["-c", "import several_toy; several_toy.main()", str(tmp_path / "run")]
    path = str(tmp_path / "copy")
    other = [own[0], f"import sys; sys.path.insert(0, {path!r}); {own[1]}", own[2]]
    for one in several.run([own, other], 2):
        assert one.code == 1
        assert re.search(r"the code must .* process 1 .* rljax/loss/kl.py: ", one.text)
    assert not (tmp_path / "run").exists()


def test_other_prompts_in_a_process_are_refused_before_a_save(tmp_path):
    ended = toy(tmp_path / "run", each=[["--disturb", "rows:1"]] * 2)
    for one in ended:
        assert one.code == 1
        assert re.search(r"the batch of phase 'rl' must .* process 1 ", one.text)
    saved = (tmp_path / "run" / "checkpoints").iterdir()
    # The second batch of this phase was another. The save before it may be unfinished.
    assert max(int(path.name[:8]) for path in saved) <= 6


def test_a_process_whose_others_never_come_says_so(tmp_path):
    program = "from rljax.run import cluster; cluster.JOIN_S = 5; import several_toy"
    arguments = ["-c", f"{program}; several_toy.main()", str(tmp_path / "run")]
    with several.started(arguments, 2) as (first, second):
        second.kill()
        ended = several.end(first)
    assert ended.code == 1
    assert "all 2 processes must join within 5 s, but process 0 waited" in ended.text


def test_folders_that_are_not_shared_are_refused(tmp_path):
    arguments = [[TOY, str(tmp_path / name)] for name in ("here", "there")]
    for one in several.run(arguments, 2):
        assert one.code == 1
        assert re.search(r"process 1 .* sees another .*checkpoints", one.text)


def test_a_folder_that_the_leader_refuses_ends_all(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for one in toy(tmp_path):
        assert one.code == 1
        assert "the run folder must be new" in one.text
    assert os.listdir(tmp_path) == ["notes.txt"]


def experiment(run_dir, flags, count, devices):
    """What each process of a tiny experiment printed, and what the run wrote."""
    arguments = ["-m", "experiments.train", "--quick", "--run-dir", str(run_dir)]
    ended = several.run([*arguments, *flags.split()], count, devices=devices)
    assert {one.code for one in ended} == {0}, ended
    assert (run_dir / "policy" / "model.safetensors").exists()
    assert (run_dir / "report.html").exists()
    times = ("seconds", "time/tokens_per_second")
    records = [
        {name: value for name, value in r.items() if name not in times}
        for r in record.read(run_dir / record.FILE)
        if r["kind"] != "event"
    ]
    return ended, records


@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        # A verifier in Python, so that each process judges its share of the rows.
        ("--verifier python", 2),
        # Each process has devices of the sampler and of the learner.
        (
            "--staleness 1 --algorithm tis --mesh data=2 --sampler-mesh data=2"
            " --num-test 0",
            4,
        ),
    ],
    ids=["in turns", "decoupled"],
)
def test_an_experiment_verifies_evaluates_and_exports(tmp_path, flags, devices):
    ended, saved = experiment(tmp_path / "two", flags, 2, devices // 2)
    _, want = experiment(tmp_path / "one", flags, 1, devices)
    assert json.dumps(saved) == json.dumps(want)
    assert "run folder" in ended[0].text and "run folder" not in ended[1].text
