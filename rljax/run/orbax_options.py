"""How orbax saves checkpoints here: in what order, how much at a time, how loudly."""

import contextlib
import logging
import math
from typing import Any

import jax

_ENCODED_BYTES = 2**28
"""Bytes of a checkpoint that are encoded at a time, in memory beside its copy."""


def saving(state: Any):
    """The context in which orbax saves a state.

    It makes the folders before `save` returns. By default its threads wait for them. On
    a full disk, where folders cannot be made, that would delay the end of a run by five
    minutes. And it encodes few arrays at a time, by default all: a second copy.
    """
    from orbax.checkpoint import v1 as orbax

    now = orbax.options.AsyncOptions(create_directories_asynchronously=False)
    largest = max(map(_shard_bytes, jax.tree.leaves(state)), default=0)
    few = orbax.options.MemoryOptions(
        write_concurrent_bytes=max(_ENCODED_BYTES, largest + 1)
    )
    return orbax.Context(async_options=now, memory_options=few)


def _shard_bytes(leaf: jax.Array) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


@contextlib.contextmanager
def quiet():
    """Silences orbax's hundreds of lines on a failed save; an event reports it."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)
