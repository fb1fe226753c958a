"""Tests run on the CPU as 8 devices; what is compiled is kept on the disk."""

import os
import pathlib

import xla

os.environ["JAX_PLATFORMS"] = "cpu"
flags = f"--xla_force_host_platform_device_count=8 {xla.QUICK_FLAGS}"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
# Each collective blocks a thread. With fewer threads than devices, as on a small
# machine, 8 devices deadlock.
os.environ["PJRT_NPROC"] = "64"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("jax", deadline=None, max_examples=30)
hypothesis.settings.load_profile("jax")


def pytest_configure(config):
    cache = config.rootpath / ".pytest_cache" / "jax"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    # However small: two workers and hundreds of files share small programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


LARGE_BYTES = 2.5e9


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file():
    """Frees what was compiled when a file ends, once this process is large.

    Not after every file: files share hundreds of small programs.
    """
    yield
    if _resident_bytes() > LARGE_BYTES:
        jax.clear_caches()


def _resident_bytes() -> float:
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        return float("inf")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
