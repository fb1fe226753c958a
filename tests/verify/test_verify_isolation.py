"""What a call does to others, to its worker and to what it has started: nothing stays.

Without subreapers (other than on Linux) descendants in other sessions survive.
"""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import worker_fakes

from rljax.verify.host import pool as pools
from rljax.verify.host import worker
from rljax.verify.host.pool import Failure, Pool

GOOD = [("x", "x"), ("x", "y")] * 20


@pytest.fixture(scope="module")
def pool():
    with Pool(worker_fakes.misbehave, num_workers=2, timeout_s=1.0) as running:
        yield running


@pytest.mark.parametrize("end", ["return", "raise", "sys.exit"])
def test_what_a_call_has_forked_never_answers(pool, end):
    # It would go on as a second worker on the same pipe, and each of its answers would
    # be taken for that of a call given later; or be faster than its parent's.
    deeds = [(f"fork, {end}", "x"), ("x", "x"), ("x", "y")] * 20
    assert pool.run(deeds) == [0.25, 1.0, 0.0] * 20
    assert pool.run(GOOD) == [1.0, 0.0] * 20


@pytest.mark.parametrize(
    ("end", "code"), [("return", 0.0), ("raise", 1.0), ("sys.exit", 4.0)]
)
def test_what_a_call_has_forked_ends_as_python_would_end_it(pool, end, code):
    assert pool.run([(f"fork, {end}", "waits")]) == [0.25 + code]


def test_what_a_call_changes_is_as_before_for_the_next(pool):
    # With `abs` and the worker's own functions replaced NaN would pass.
    deeds = [(deed, "x") for deed in ("change", "nan", "replace", "nan", "x")] * 4
    got = [r.kind if isinstance(r, Failure) else r for r in pool.run(deeds)]
    assert got == [0.5, "raised", 0.5, "raised", 1.0] * 4


@pytest.mark.parametrize("deed", ["child", "session"])
def test_what_a_hanging_call_has_started_is_killed(pool, deed, tmp_path):
    file = tmp_path / "pid"
    (result,) = pool.run([(deed, str(file))])
    assert result.kind == "timeout"
    assert not is_running(int(file.read_text()))


def test_what_a_call_has_left_behind_is_killed_when_it_answers(pool, tmp_path):
    # It has neither the call's group nor its session, nor is it its child any more.
    files = [tmp_path / str(i) for i in range(3)]
    assert pool.run([("daemon", str(file)) for file in files]) == [0.75] * 3
    assert not any(is_running(int(file.read_text())) for file in files)


def test_what_a_call_that_kills_its_worker_has_started_is_killed(tmp_path):
    with Pool(worker_fakes.misbehave, num_workers=1, timeout_s=1.0) as running:
        worker_ = running._workers[0].process
        (result,) = running.run([("kill parent", "x")])
        assert result == Failure("died", "its worker was killed")
        assert running._workers[0].process != worker_
        assert not is_running(worker_)
        assert running.run(GOOD) == [1.0, 0.0] * 20
        server = running._server._process.pid
        assert children(server) == {running._workers[0].process}
    assert not is_running(server)


def test_a_worker_that_is_stopped_costs_its_call_only(monkeypatch):
    monkeypatch.setattr(pools, "_GRACE_S", 0.5)
    with Pool(worker_fakes.misbehave, num_workers=2, timeout_s=0.5) as running:
        results = running.run([*GOOD, ("stop parent", "x"), *GOOD])
        assert results.pop(40) == Failure("timeout", "0.5 s")
        assert results == [1.0, 0.0] * 40


def test_a_server_that_is_killed_is_started_again():
    with Pool(worker_fakes.misbehave, num_workers=2, timeout_s=5.0) as running:
        results = running.run([*GOOD, ("kill server", "x"), *GOOD])
        assert results.pop(40) == Failure("died", "its worker was killed")
        assert results == [1.0, 0.0] * 40


def test_workers_killed_between_runs_are_replaced():
    # Their end is no call's fault: none of the next ones fails.
    with Pool(worker_fakes.same, num_workers=2, timeout_s=30.0) as running:
        for worker_ in running._workers:
            os.kill(worker_.process, signal.SIGKILL)
            assert not is_running(worker_.process)
        assert running.run(GOOD) == [1.0, 0.0] * 20


@pytest.mark.parametrize(
    ("answer", "kind"),
    [("b'n' * 100", "timeout"), ("b'x' * 512", "died"), ("b'x' * 700", "died")],
)
def test_a_worker_that_sends_anything_else_does_not_hang_the_trainer(
    monkeypatch, tmp_path, answer, kind
):
    # A reader that waits for the rest of a message would wait for ever.
    fake = tmp_path / "server.py"
    fake.write_text(
        textwrap.dedent(f"""
            import importlib.util, socket, sys

            spec = importlib.util.spec_from_file_location("real", {worker.__file__!r})
            real = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(real)

            def work_on(line, call, work, control):
                control.close()
                while True:
                    real.receive(line)
                    line.sendall({answer})

            real.work_on = work_on
            real.serve(socket.socket(fileno=int(sys.argv[1])))
        """)
    )
    monkeypatch.setattr(worker, "__file__", str(fake))
    monkeypatch.setattr(pools, "_GRACE_S", 0.1)
    with Pool(worker_fakes.same, num_workers=1, timeout_s=0.1) as running:
        results = running.run([("x", "x")] * 3)
    assert [result.kind for result in results] == [kind] * 3


def test_closing_the_pool_ends_all_of_its_processes(tmp_path):
    with Pool(worker_fakes.misbehave, num_workers=2, timeout_s=30.0) as running:
        server = running._server._process.pid
        workers = {worker_.process for worker_ in running._workers}
        running._arguments = [("session", str(tmp_path / "pid"))]
        running._queue.append(0)
        running._feed()
        child = wait_for(tmp_path / "pid")
    assert not any(is_running(process) for process in {server, child, *workers})


def test_all_processes_end_with_a_trainer_that_is_killed(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(f"""
            import sys

            sys.path[:0] = {[str(pathlib.Path(__file__).parent), *sys.path]!r}
            import worker_fakes
            from rljax.verify.host.pool import Pool

            if __name__ == "__main__":
                pool = Pool(worker_fakes.misbehave, num_workers=1, timeout_s=1e3)
                with pool:
                    print(pool._server._process.pid, pool._workers[0].process)
                    sys.stdout.flush()
                    pool.run([("session", {str(tmp_path / "pid")!r})])
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=-1) as trainer:
        others = {int(word) for word in trainer.stdout.readline().split()}
        others.add(wait_for(tmp_path / "pid"))
        trainer.kill()
    assert len(others) == 3
    assert not any(is_running(process) for process in others)


def test_a_function_of_the_script_itself_is_found_and_a_missing_guard_said(tmp_path):
    head = f"""
        import sys

        sys.path[:0] = {sys.path!r}
        from rljax.verify.host.pool import Pool

        def reward(completion, answer):
            return len(completion)

        def main():
            with Pool(reward, num_workers=1, timeout_s=10.0) as pool:
                print(pool.run([("four", "")]))
    """
    path = tmp_path / "script.py"
    path.write_text(
        textwrap.dedent(head) + '\nif __name__ == "__main__":\n    main()\n'
    )
    run = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert run.stdout == "[4.0]\n", run.stderr
    path.write_text(textwrap.dedent(head) + "\nmain()\n")
    run = subprocess.run([sys.executable, path], capture_output=True, text=True)
    assert "RuntimeError: a worker cannot load its function" in run.stderr
    assert 'A script needs `if __name__ == "__main__":`' in run.stderr


def wait_for(path: pathlib.Path) -> int:
    """The process id in a file, once it is there."""
    for _ in range(1000):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.02)
    raise AssertionError(f"{path} was not written")


def children(process: int) -> set[int]:
    listed = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text()
    return set(map(int, listed.split()))


def is_running(process: int) -> bool:
    for _ in range(100):  # killed is not yet gone
        try:
            with open(f"/proc/{process}/stat", encoding="ascii") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except FileNotFoundError:
            return False
        time.sleep(0.02)
    return True
