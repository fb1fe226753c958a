"""Calls that fail in every way, in a pool that outlives them."""

import os

import pytest
import worker_fakes

from rljax.verify.host import pool as pools
from rljax.verify.host import worker
from rljax.verify.host.pool import Failure, Pool

GOOD = [("x", "x"), ("x", "y")] * 20


@pytest.fixture(scope="module")
def pool():
    with Pool(
        worker_fakes.misbehave, num_workers=2, timeout_s=1.0, memory_bytes=1 << 30
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
        ("stop", "timeout", "1 s"),
        ("raise", "raised", "KeyError: 'no such thing'"),
        ("mute", "raised", "Mute, whose message cannot be read"),
        ("recurse", "raised", "RecursionError"),
        ("exit", "died", "exit code 3"),
        ("silent", "died", "exit code 0 without an answer"),
        ("kill", "died", "exit code -9"),
        ("crash", "died", "exit code -11"),
        ("close", "died", "without an answer"),
        ("kill parent", "died", "its worker was killed"),
        ("sys.exit", "raised", "SystemExit: 2"),
        ("memory", "raised", "MemoryError"),
        ("nan", "raised", "must be a finite float32, got nan"),
        ("huge", "raised", "must be a finite float32, got 1e+39"),
        ("digits", "raised", "OverflowError"),
        ("none", "raised", "TypeError: a reward must be one number, got NoneType"),
        ("text", "raised", "TypeError: a reward must be one number, got str; return"),
        ("column", "raised", "got worker_fakes.Column of shape (1,)"),
        ("piece", "timeout", "1 s"),
        ("flood", "died", "wrote something that is no answer"),
    ],
)
def test_a_bad_call_fails_alone(pool, deed, kind, detail):
    # Losing what else the worker was given would fail its neighbours, too; running it
    # again would not end.
    results = pool.run([*GOOD, (deed, "x"), *GOOD])
    assert results[:40] == results[41:] == [1.0, 0.0] * 20
    assert results[40].kind == kind
    assert detail in results[40].detail
    assert pool.run(GOOD[:4]) == [1.0, 0.0] * 2


def test_many_bad_calls_fail_each_for_its_own_reason(pool):
    deeds = ["raise", "x", "exit", "exit", "x", "hang", "exit", "nan", "x", "exit"]
    want = ["raised", 1, "died", "died", 1, "timeout", "died", "raised", 1, "died"]
    assert kinds(pool.run([(deed, "x") for deed in deeds])) == want


def test_a_call_may_print(capfd):
    # Ended at once, its process would lose what is still in the buffer.
    with Pool(worker_fakes.misbehave, num_workers=1, timeout_s=5.0) as running:
        assert running.run([("print", "x")] * 3) == [1.0] * 3
    assert capfd.readouterr().out == "said" * 3


def test_each_call_has_a_process_of_its_own_and_the_file_is_loaded_once():
    with Pool(worker_fakes.process_id, num_workers=2, timeout_s=5.0) as running:
        ids = running.run(GOOD)
    assert len(set(ids)) == len(GOOD) and os.getpid() not in ids
    with pytest.raises(ValueError, match="the pool is closed"):
        running.run(GOOD)
    with Pool(worker_fakes.loader_id, num_workers=2, timeout_s=5.0) as running:
        assert len({os.getpid(), *running.run(GOOD)}) == 2


def test_processes_have_only_what_the_function_needs():
    # Each of them would copy JAX's memory map, and wait for its import.
    names = ["worker_fakes", "jax", "numpy", "rljax", "pytest"]
    with Pool(worker_fakes.has_imported, num_workers=1, timeout_s=5.0) as running:
        assert running.run([(name, "") for name in names]) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_a_function_that_cannot_be_loaded_stops_the_start(monkeypatch, tmp_path):
    # It is found here but not by a fresh process.
    monkeypatch.setattr(worker_fakes, "late", late, raising=False)
    monkeypatch.setattr(late, "__module__", "worker_fakes")
    with pytest.raises(RuntimeError, match=r"cannot load its function.*late"):
        Pool(late, num_workers=1, timeout_s=1.0).__enter__()


def late(completion, answer):
    return 0.0


late.__qualname__ = "late"


@pytest.fixture
def broken_server(tmp_path):
    """A server that ends before it is ready."""
    path = tmp_path / "server.py"
    path.write_text("raise SystemExit(3)")
    return str(path)


def test_a_server_that_ends_before_it_is_ready_stops_the_start(
    monkeypatch, broken_server
):
    # Starting it over and over would hang the trainer for ever.
    monkeypatch.setattr(worker, "__file__", broken_server)
    with pytest.raises(RuntimeError, match="ended before it was ready"):
        Pool(worker_fakes.same, num_workers=1, timeout_s=1.0).__enter__()


def test_workers_that_cannot_be_replaced_stop_the_run(monkeypatch, broken_server):
    # One failed start is tolerated, the machine may be short of memory; not all.
    monkeypatch.setattr(pools, "_MAX_STARTS", 2)
    with Pool(worker_fakes.misbehave, num_workers=1, timeout_s=5.0) as running:
        monkeypatch.setattr(worker, "__file__", broken_server)
        with pytest.raises(RuntimeError, match="2 times in a row"):
            running.run([("kill server", "x"), ("x", "x")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"num_workers": 1.5}, "num_workers must be at least 1, got 1.5"),
        ({"num_workers": "4"}, "num_workers must be at least 1, got '4'"),
        ({"timeout_s": 0.0}, "timeout_s must be positive seconds, got 0.0"),
        ({"timeout_s": float("inf")}, "timeout_s must be positive"),
        ({"timeout_s": float("nan")}, "timeout_s must be positive"),
        ({"timeout_s": "1"}, "timeout_s must be positive seconds, got '1'"),
        ({"memory_bytes": 0}, "memory_bytes must be a positive number"),
        ({"memory_bytes": 1e9}, "memory_bytes must be a positive number"),
        ({"fn": lambda c, a: 0.0}, "fn must be importable by its name"),
        ({"fn": "same"}, "fn must be a function, got 'same'"),
    ],
)
def test_arguments_out_of_range_raise(changes, message):
    arguments = {"fn": worker_fakes.same, "num_workers": 1, "timeout_s": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        Pool(**arguments)
