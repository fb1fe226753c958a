"""Several processes in one run: which one leads, and how they exchange values.

Usually there is one process per host. All run the same program on one mesh; process 0,
the leader, also writes the run's files. Values other than arrays are exchanged through
the key-value store of `jax.distributed`. A message takes a fraction of a millisecond
and waits for no device. All processes must call the functions here in the same order.
With a single process none of them communicates.

`rljax.run.cluster` makes a process join the others.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # jax.distributed exposes neither store nor barrier
from jax.experimental import multihost_utils
from jax.sharding import Sharding

_DAYS_MS = 7 * 24 * 3600 * 1000  # no timeout: `run.watch` detects dead processes
_rounds = itertools.count()
_names: list[str] = []


def count() -> int:
    """Number of processes of this run."""
    several = jax.distributed.is_initialized()
    return distributed.global_state.num_processes if several else 1


def store() -> Any:
    """The key-value store that all processes share; the leader hosts it."""
    return distributed.global_state.client


def index() -> int:
    """This process's number, from 0."""
    return distributed.global_state.process_id if count() > 1 else 0


def leads() -> bool:
    """Whether this process is the leader, which writes the run's files."""
    return index() == 0


def name(number: int) -> str:
    """The name of a process in messages: its number, host and process id."""
    return _names[number] if _names else f"process {number}"


def introduce(host: str, pid: int) -> None:
    """Exchanges the names of all processes, for messages."""
    of = count()
    mine = f"process {index()} of {of} (host {host}, process id {pid})"
    _names[:] = gathered("names", mine)


def gathered(what: str, value: Any) -> list[Any]:
    """The values of all processes in their order; waits until all have called this.

    Args:
      what: the subject of the exchange, which must be the same in all processes.
      value: this process's value, JSON-able.

    Raises:
      RuntimeError: if the subjects differ: the processes are at different places of the
        program.
    """
    if count() == 1:
        return [value]
    client, number = store(), next(_rounds)
    own = "{}/" + f"{index():06d}"
    client.key_value_set(own.format(f"rljax/{number}"), json.dumps([what, value]))
    client.wait_at_barrier("rljax", _DAYS_MS)
    found = sorted(client.key_value_dir_get(f"rljax/{number}/"))
    if number:  # all processes have read the previous round before they came here
        client.key_value_delete(own.format(f"rljax/{number - 1}"))
    subjects, values = zip(*(json.loads(text) for _, text in found), strict=True)
    if len(set(subjects)) > 1:
        places = ", ".join(f"{name(i)} at {s!r}" for i, s in enumerate(subjects))
        raise RuntimeError(f"all processes must be at the same place, got {places}.")
    return list(values)


def barrier(what: str) -> None:
    """Waits until all processes have called this."""
    gathered(what, None)


def from_leader(what: str, fn: Callable[[], Any]) -> Any:
    """Calls `fn` in the leader only; returns its JSON-able result in all processes."""
    return gathered(what, fn() if leads() else None)[0]


def require_same(what: str, mine: Mapping[str, Any], advice: str) -> None:
    """Raises unless all processes have the same entries as the leader.

    Args:
      what: what the entries describe, for the message.
      mine: this process's entries by name, JSON-able.
      advice: what to do, the end of the message.

    Raises:
      ValueError: in every process, with the first process that differs and its entries.
    """
    if count() == 1:
        return
    mine = json.loads(json.dumps(mine))
    first = from_leader(what, lambda: mine)
    differing = [
        f"{key}: {mine.get(key, 'nothing')} there, {first.get(key, 'nothing')} here"
        for key in sorted({*mine, *first})
        if mine.get(key) != first.get(key)
    ]
    for number, found in enumerate(gathered(what, differing[:5])):
        if found:
            raise ValueError(
                f"{what} must be the same in all processes, but {name(number)} differs"
                f" from {name(0)}: {'; '.join(found)}. {advice}"
            )


@contextlib.contextmanager
def led(what: str, context: contextlib.AbstractContextManager) -> Iterator[Any]:
    """The leader enters the context; the others wait until it has.

    Yields:
      In the leader the context's value, in the others None.

    Raises:
      ValueError: in the others, with the leader's message, if the leader could not
        enter. The leader raises its own error.
    """
    with contextlib.ExitStack() as stack:
        value, error = None, None
        if leads():
            try:
                value = stack.enter_context(context)
            except Exception as problem:
                error = problem
        text = from_leader(what, lambda: None if error is None else str(error))
        if error is not None:
            raise error
        if text is not None:
            raise ValueError(f"{name(0)}: {text}")
        yield value


def put(tree: Any, shardings: Any) -> Any:
    """Puts arrays on devices, including those of other processes.

    Host arrays must be whole and equal in all processes; each process takes the parts
    of its own devices. `jax.device_put` would send all arrays around to compare them.

    Args:
      tree: arrays on the host or on devices.
      shardings: one for all arrays, or a tree of them.
    """
    if count() == 1:
        return jax.device_put(tree, shardings)
    if isinstance(shardings, Sharding):
        return jax.tree.map(lambda x: _placed(x, shardings), tree)
    return jax.tree.map(_placed, tree, shardings)


def _placed(x: Any, sharding: Sharding) -> jax.Array:
    if isinstance(x, jax.Array):
        if not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = _placed(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def fetch(tree: Any) -> Any:
    """Whole arrays as NumPy arrays, in every process; all processes must call it.

    With several processes, random keys are returned unchanged.
    """
    if count() == 1:
        return jax.device_get(tree)

    def whole(x):
        if not isinstance(x, jax.Array):
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return x
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def require_shared(tree: Any, what: str) -> None:
    """Raises unless every process holds a part of every array.

    Otherwise the processes would compute different things.

    Args:
      tree: arrays on devices.
      what: what they are, for the message.

    Raises:
      ValueError: with the first leaf that some process has no part of.
    """
    if count() == 1:
        return
    for path, leaf in jax.tree.leaves_with_path(tree):
        where = {device.process_index for device in leaf.sharding.device_set}
        if len(where) < count():
            raise ValueError(
                f"{what} must lie on devices of all {count()} processes, but"
                f" {jax.tree_util.keystr(path)} lies on those of {sorted(where)}; take"
                " a mesh of all devices: mesh.make(), or --mesh."
            )
