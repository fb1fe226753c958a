"""Traces a few dispatches with JAX's profiler; `xprof` shows the trace."""

import dataclasses
import os
from collections.abc import Sequence

import jax

from rljax.run.phase import Phase

FIRST, NUM = 1, 2
"""Index of the first traced dispatch, and number of them; dispatch 0 compiles."""


def last_traced(phases: Sequence[Phase], folder: str | os.PathLike) -> list[Phase]:
    """The same phases, but the last one traces a few of its dispatches.

    The scopes sample, prefill, decode, verify, credit and update name the parts of a
    step in the trace. Traced dispatches block until the device has finished.

    Args:
      phases: of a run.
      folder: to write the trace to.
    """
    *before, last = phases
    calls = 0

    def run(state, prompts):
        nonlocal calls
        calls += 1
        if not FIRST < calls <= FIRST + NUM:
            return last.run(state, prompts)
        jax.block_until_ready(state)  # earlier work must not enter the trace
        if calls == FIRST + 1:
            jax.profiler.start_trace(os.fspath(folder))
        out = jax.block_until_ready(last.run(state, prompts))
        if calls == FIRST + NUM:
            jax.profiler.stop_trace()
        return out

    return [*before, dataclasses.replace(last, run=run)]
