"""One process at a time in a run folder, however many start and however they end."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys

import pytest
import toy_run
from toy_run import go_silently as go

from rljax.run import checkpoint, fault, ownership, train
from rljax.run.run_dir import open_run

# A light process: it loads the one file by its path, not the library.
_OWNER = f"""if True:
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("o", {ownership.__file__!r})
    ownership = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ownership)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with ownership.owned(sys.argv[1]):
            print("in", flush=True)
            sys.stdin.readline()
    except ValueError as error:
        print(error, flush=True)
"""


class Owner:
    """A process that takes a folder on `go` and keeps it until `end`."""

    def __init__(self, run_dir):
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWNER, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self):
        return self.process.stdout.readline().strip()

    def end(self, by=None):
        if by is not None:
            self.process.send_signal(by)
        self.process.communicate()


def test_of_starts_at_once_in_an_empty_folder_exactly_one_is_let_in(tmp_path):
    # Looking first and then making the file let both in, 40 times of 200.
    for number in range(8):
        run_dir = tmp_path / str(number)
        owners = [Owner(run_dir) for _ in range(4)]
        for owner in owners:
            owner.go()
        answers = [owner.answer() for owner in owners]
        winner = owners[answers.index("in")]
        refused = [answer for answer in answers if answer != "in"]
        assert len(refused) == 3
        for answer in refused:
            assert "in use by " in answer
        for owner in owners:
            owner.end()
        assert str(winner.process.pid) in (run_dir / ownership.FILE).read_text()


def test_resume_of_a_folder_whose_owner_lives_names_it_and_touches_nothing(tmp_path):
    go(tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    owner = Owner(tmp_path / "run")
    owner.go()
    assert owner.answer() == "in"
    for resume in (True, False):
        with pytest.raises(ValueError) as raised:
            go(tmp_path / "run", resume=resume)
        who = f"in use by process {owner.process.pid} on {os.uname().nodename} since "
        assert who in str(raised.value)
        assert "another run folder" in str(raised.value)
    owner.end()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    go(tmp_path / "run", resume=True)


_FORKER = f"""if True:
    import importlib.util, os, signal, sys
    spec = importlib.util.spec_from_file_location("o", {ownership.__file__!r})
    ownership = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ownership)
    reader, writer = os.pipe()
    with ownership.owned(sys.argv[1]):
        if os.fork() == 0:
            os.write(writer, b"1")  # the fork is done on the child's side, too
            sys.stdin.readline()
            print("the child lived", flush=True)
            os._exit(0)
        os.read(reader, 1)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_owner_leaves_the_folder_free_though_its_child_lives(tmp_path):
    # A forked child shares its parent's lock unless it lets go: no resume would ever
    # be let in beside a verifier's worker that survived.
    with subprocess.Popen(
        [sys.executable, "-c", _FORKER, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.wait() == -signal.SIGKILL
        with ownership.owned(tmp_path):
            pass
        assert process.communicate("\n")[0] == "the child lived\n"


def test_a_process_owns_a_folder_once(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with open_run(tmp_path / "run", {}, resume=False) as run_dir:
        for same in (run_dir, tmp_path / "link" / "run"):
            with (
                pytest.raises(ValueError, match=f"in use by process {os.getpid()} on"),
                open_run(same, {}, resume=True),
            ):
                pass
        with ownership.ensured(run_dir):  # as the loop does, in the folder it is given
            pass
        assert ownership.taken_over_by(run_dir) is None


def test_training_in_a_plain_folder_owns_it_too(tmp_path):
    owner = Owner(tmp_path)
    owner.go()
    assert owner.answer() == "in"
    with pytest.raises(ValueError, match=f"in use by process {owner.process.pid}"):
        train.train(
            toy_run.phases(), toy_run.make_state(), tmp_path, checkpoint_every=9
        )
    owner.end()


def test_the_lock_file_stays_and_one_that_was_removed_is_made_again(tmp_path):
    with ownership.owned(tmp_path):
        pass
    assert (tmp_path / ownership.FILE).exists()
    (tmp_path / ownership.FILE).unlink()
    with ownership.owned(tmp_path):
        assert str(os.getpid()) in (tmp_path / ownership.FILE).read_text()


def test_where_locks_do_not_reach_the_first_owner_stops_at_its_next_checkpoint(
    tmp_path,
):
    # Another machine's process takes a folder whose lock only this machine knows.
    def take_over():
        other = tmp_path / "other"
        with ownership.owned(other):
            shutil.copy(other / ownership.FILE, tmp_path / "run" / ownership.FILE)

    with pytest.raises(fault.RunFault) as raised:
        go(tmp_path / "run", phases=toy_run.disturbed(1, 1, take_over))
    assert "was taken over by process" in str(raised.value)
    assert "stops after step 8" in str(raised.value)
    found = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert found.info["step"] == 6


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.warns(UserWarning, match=r"cannot lock files \(No locks available\)"),
        ownership.owned(tmp_path),
    ):
        pass
