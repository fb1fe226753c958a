"""A trace of a few dispatches, for `xprof`: where the time of a step goes."""

import dataclasses
import os
from collections.abc import Sequence

import jax

from rljax.run.phase import Phase

FIRST, NUM = 1, 2
"""Dispatches that are traced: from this number on, so many. The first one compiles."""


def last_traced(phases: Sequence[Phase], folder: str | os.PathLike) -> list[Phase]:
    """The phases, of which the last one writes a trace of a few dispatches.

    In it the scopes sample, prefill, decode, verify, credit and update name the parts
    of a step. The traced dispatches wait for the device; all others are as they were.

    Args:
      folder: where the trace goes.
    """
    *before, last = phases
    calls = 0

    def run(state, prompts):
        nonlocal calls
        calls += 1
        if not FIRST < calls <= FIRST + NUM:
            return last.run(state, prompts)
        jax.block_until_ready(state)  # what was begun before is not of this trace
        if calls == FIRST + 1:
            jax.profiler.start_trace(os.fspath(folder))
        out = jax.block_until_ready(last.run(state, prompts))
        if calls == FIRST + NUM:
            jax.profiler.stop_trace()
        return out

    return [*before, dataclasses.replace(last, run=run)]
