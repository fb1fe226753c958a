"""Times calls on the device; the first call compiles and is not counted."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def in_turn(calls: dict, rounds: int) -> dict:
    """Name -> seconds by round; in each round the calls run in turn."""
    times = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - start)
    return times


def median(call: Callable[[], Any], rounds: int) -> float:
    """Median seconds of one call."""
    return statistics.median(in_turn({"": call}, rounds)[""])
