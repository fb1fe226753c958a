"""Calls that fail in every way, in a pool that outlives them."""

import os
import time

import pytest
import verify_fakes

from rljax.verify import worker
from rljax.verify.pool import Failure, Pool

GOOD = [("x", "x"), ("x", "y")] * 20


@pytest.fixture(scope="module")
def pool():
    with Pool(
        verify_fakes.misbehave, num_workers=2, timeout_s=1.0, memory_bytes=1 << 30
    ) as running:
        yield running


def kinds(results):
    return [r.kind if isinstance(r, Failure) else r for r in results]


def test_results_come_in_the_order_of_the_calls(pool):
    assert pool.run(GOOD) == [1.0, 0.0] * 20
    assert pool.run([]) == []


@pytest.mark.parametrize(
    ("deed", "kind", "detail"),
    [
        ("hang", "timeout", "1 s"),
        ("spin", "timeout", "1 s"),
        ("raise", "raised", "KeyError: 'no such thing'"),
        ("exit", "died", "exit code 3"),
        ("sys.exit", "raised", "SystemExit: 2"),
        ("memory", "raised", "MemoryError"),
        ("nan", "raised", "must be a finite float32, got nan"),
        ("huge", "raised", "must be a finite float32, got 1e+39"),
        ("none", "raised", "TypeError"),
    ],
)
def test_a_bad_call_fails_alone(pool, deed, kind, detail):
    # Losing the rest of its chunk would fail its neighbours, too; running the chunk
    # again would not end.
    results = pool.run([*GOOD, (deed, "x"), *GOOD])
    assert results[:40] == results[41:] == [1.0, 0.0] * 20
    assert results[40].kind == kind
    assert detail in results[40].detail
    assert pool.run(GOOD) == [1.0, 0.0] * 20


def test_many_bad_calls_fail_each_for_its_own_reason(pool):
    deeds = ["raise", "x", "exit", "exit", "x", "hang", "exit", "nan", "x", "exit"]
    want = ["raised", 1, "died", "died", 1, "timeout", "died", "raised", 1, "died"]
    assert kinds(pool.run([(deed, "x") for deed in deeds])) == want


def test_what_a_hanging_call_started_is_killed_too(pool, tmp_path):
    file = tmp_path / "pid"
    (result,) = pool.run([("child", str(file))])
    assert result.kind == "timeout"
    assert not is_running(int(file.read_text()))


def test_workers_killed_between_runs_are_replaced():
    # Their end is no call's fault: none of the next ones fails.
    with Pool(verify_fakes.same, num_workers=2, timeout_s=30.0) as running:
        for worker_ in running._workers:
            worker_.process.kill()
            worker_.process.join()
        assert running.run(GOOD) == [1.0, 0.0] * 20


def test_the_calls_run_in_as_many_processes_as_asked_for():
    with Pool(verify_fakes.process_id, num_workers=2, timeout_s=5.0) as running:
        ids = set(running.run(GOOD))
        assert 1 <= len(ids) <= 2 and os.getpid() not in ids
    assert not any(is_running(int(process)) for process in ids)
    with pytest.raises(ValueError, match="the pool is closed"):
        running.run(GOOD)


def test_a_function_that_cannot_be_loaded_stops_the_start(monkeypatch, tmp_path):
    # It is found here but not by a fresh process.
    monkeypatch.setattr(verify_fakes, "late", late, raising=False)
    monkeypatch.setattr(late, "__module__", "verify_fakes")
    with pytest.raises(RuntimeError, match=r"cannot load its function.*late"):
        Pool(late, num_workers=1, timeout_s=1.0).__enter__()


def late(completion, answer):
    return 0.0


late.__qualname__ = "late"


def test_workers_that_end_before_they_are_ready_stop_the_start(monkeypatch):
    # Starting them over and over would hang the trainer for ever.
    monkeypatch.setattr(worker, "serve", os._exit)
    with pytest.raises(RuntimeError, match="ended before it was ready"):
        Pool(verify_fakes.same, num_workers=1, timeout_s=1.0).__enter__()


def test_workers_that_cannot_be_replaced_stop_the_run(monkeypatch):
    # One failed start is tolerated, the machine may be short of memory; not all.
    with Pool(verify_fakes.misbehave, num_workers=1, timeout_s=5.0) as running:
        monkeypatch.setattr(worker, "serve", os._exit)
        with pytest.raises(RuntimeError, match="3 times in a row"):
            running.run([("exit", "x"), ("x", "x")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"timeout_s": 0.0}, "timeout_s must be positive seconds, got 0.0"),
        ({"timeout_s": float("inf")}, "timeout_s must be positive"),
        ({"memory_bytes": 0}, "memory_bytes must be a positive number"),
        ({"fn": lambda c, a: 0.0}, "fn must be importable by its name"),
    ],
)
def test_arguments_out_of_range_raise(changes, message):
    arguments = {"fn": verify_fakes.same, "num_workers": 1, "timeout_s": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        Pool(**arguments)


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
