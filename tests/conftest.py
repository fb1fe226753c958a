"""Tests run on the CPU as 8 devices; warnings are errors; compilations are kept."""

import collections
import datetime
import os

os.environ["JAX_PLATFORMS"] = "cpu"
flags = os.environ.get("XLA_FLAGS", "")
# Most of the tests' time is compilation, a tenth of it the passes left out here.
flags += " --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
# Collectives block a thread each, in any order: with as few threads as a small machine
# has cores, 8 devices deadlock.
os.environ["PJRT_NPROC"] = "64"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("jax", deadline=None, max_examples=30)
hypothesis.settings.load_profile("jax")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "error")
    # Two runs beside each other write the same entry; the loser only warns.
    cached = "ignore:Error .* persistent compilation cache"
    config.addinivalue_line("filterwarnings", cached)
    cache = config.rootpath / ".pytest_cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    parser.addoption(
        "--all-turns", action="store_true", help="all cases of tests marked by_turns"
    )


def pytest_collection_modifyitems(config, items):
    """Of a test marked `by_turns(n)`, leaves every n-th case, others each day.

    Unless all are asked for, or some by name.
    """
    named = config.option.keyword or any("::" in arg for arg in config.args)
    if config.option.all_turns or named:
        return
    day = datetime.datetime.now(datetime.UTC).toordinal()
    counts, kept, left_out = collections.Counter(), [], []
    for item in items:
        mark = item.get_closest_marker("by_turns")
        if mark is not None:
            counts[item.function] += 1
        due = mark is None or (counts[item.function] + day) % mark.args[0] == 0
        (kept if due else left_out).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.fixture
def strict():
    """No silent broadcasting of ranks or promotion of dtypes, for pure array code."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A toy run that nothing disturbed, and its outcome."""
    import toy_run

    run_dir = tmp_path_factory.mktemp("train") / "whole"
    return run_dir, toy_run.outcome(toy_run.go_silently(run_dir), run_dir)


@pytest.fixture
def compilations():
    """A list that grows by one with every program that is compiled."""
    names = []

    def count(name, *_, **__):
        if "backend_compile" in name:
            names.append(name)

    jax.monitoring.register_event_duration_secs_listener(count)
    yield names
    jax.monitoring.unregister_event_duration_listener(count)
