"""Free memory of this machine, and short measurements of its speed."""

import os
import pathlib
import time

import jax
import jax.numpy as jnp


def free_memory(device: jax.Device) -> int:
    """Free bytes on a device; for a CPU, of the machine or its container."""
    stats = device.memory_stats()
    if stats is not None:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    container = _container_memory(pathlib.Path("/sys/fs/cgroup"))
    return _host_memory() if container is None else min(_host_memory(), container)


def matmul_flops_per_s(
    rows: int, width: int, other: int, dtype, seconds: float
) -> float:
    """FLOP/s of the products [rows, width] x [width, other] x [other, width].

    Args:
      rows, width, other: sizes of the products.
      dtype: of the arrays.
      seconds: approximate time for the measurement. If all rows would take longer, the
        rate is that of 256 rows.
    """
    few = min(rows, 256)
    rate = _matmul_rate(few, width, other, dtype, seconds / 2)
    # Measuring runs the products at least 4 times; each takes 4 rows width other FLOPs.
    if 4 * 4.0 * rows * width * other / rate > seconds:
        return rate
    return rate if few == rows else _matmul_rate(rows, width, other, dtype, seconds)


def _matmul_rate(rows, width, other, dtype, seconds):
    x = jnp.ones((rows, width), dtype)
    there = jnp.full((width, other), 1 / width, dtype)
    back = jnp.full((other, width), 1 / other, dtype)

    def work(x, repeats, there, back):
        return jax.lax.fori_loop(0, repeats, lambda i, x: x @ there @ back, x)

    return 4.0 * rows * width * other / _seconds_each(work, x, seconds, there, back)


def bandwidth(num_bytes: int, seconds: float) -> float:
    """Bytes/s, read plus written, while an array of `num_bytes` is updated in place."""

    def work(x, repeats):
        return jax.lax.fori_loop(0, repeats, lambda i, x: x * 0.5 + 1, x)

    x = jnp.zeros(num_bytes // 4, jnp.float32)
    return 2 * num_bytes / _seconds_each(work, x, seconds)


def _seconds_each(work, x, seconds: float, *arrays) -> float:
    """Seconds of one repeat of `x = work(x, repeats, *arrays)`: the best of 3 tries."""
    work = jax.jit(work, donate_argnums=0)

    def timed(x, repeats):
        start = time.perf_counter()
        x = jax.block_until_ready(work(x, repeats, *arrays))
        return x, time.perf_counter() - start

    x, _ = timed(x, 1)  # compiles
    x, once = timed(x, 1)
    # Enough repeats to hide the cost of a dispatch, but 3 tries in the given time.
    repeats = max(1, min(1000, int(seconds / 3 / once)))
    tries = []
    for _ in range(3):
        x, took = timed(x, repeats)
        tries.append(took / repeats)
    return min(tries)


def _host_memory() -> int:
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    sizes = dict(line.split(":") for line in lines)
    return 1024 * int(sizes["MemAvailable"].split()[0])


def _container_memory(folder: pathlib.Path) -> int | None:
    """Free bytes below the memory limit of a container; None without a limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used
