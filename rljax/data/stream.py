"""An endless shuffled stream of training batches.

Symbols: `N` problems of a data set, `K` training steps per dispatch, `P` prompts per
step.
"""

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rljax import check, digest
from rljax.layout import take
from rljax.types import Prompts

if TYPE_CHECKING:
    import grain

MapFn = Callable[[Prompts, np.random.Generator], Prompts]
"""(prompts [P, ...] of a step, generator of the step) -> prompts."""


def _unchanged(prompts: Prompts, rng: np.random.Generator) -> Prompts:
    return prompts


def stream(
    prompts: Prompts,
    *,
    num_prompts: int,
    seed: int,
    steps_per_dispatch: int = 1,
    map_fn: MapFn = _unchanged,
) -> "Stream":
    """An endless shuffled stream of training batches over a data set.

    Each epoch is a new permutation of the rows, cut into steps of `num_prompts`. No
    prompt occurs twice in an epoch, and so none twice in a step, where both would get
    the same samples. Rows left over at the end of an epoch (less than a step) are
    skipped. A step depends only on `seed` and its number, not on steps_per_dispatch.
    With several processes each gets the whole batch; the mesh decides which rows its
    devices hold.

    Args:
      prompts: the data set, N rows of NumPy arrays.
      num_prompts: prompts of one training step; at most N.
      seed: in [0, 2**32).
      steps_per_dispatch: `K`, the training steps of one item.
      map_fn: `(prompts [P, ...], rng) -> prompts`, applied to every step with a
        generator keyed by (seed, step), for instance to draw other demonstrations.

    Returns:
      An iterator over `Prompts` of NumPy arrays [K, num_prompts, ...]. `get_state()` is
      a small JSON-able dict with the number of steps handed out and a fingerprint of
      `prompts`. After `set_state(state)` a stream made with the same arguments
      continues exactly there; steps_per_dispatch may differ.

    Raises:
      ValueError: for sizes that do not fit each other; in `set_state`, if the state
        belongs to other prompts.
    """
    import grain

    check.kind("prompts", prompts, Prompts, "encode_prompts(...)[0]")
    check.count("num_prompts", num_prompts, low=0)
    check.count("seed", seed, low=0, high=2**32 - 1)
    check.count("steps_per_dispatch", steps_per_dispatch)
    check.function("map_fn", map_fn, "prompts, rng")
    (size, *others) = {len(leaf) for leaf in jax.tree.leaves(prompts)}
    if others:
        raise ValueError(
            f"all arrays of prompts must have the same number of rows, got {size} and"
            f" {others}; build them together."
        )
    _check_stream(size, num_prompts)
    steps = grain.MapDataset.source(_Steps(size, num_prompts, seed))
    steps = steps.map(lambda rows: take(prompts, rows)).random_map(map_fn, seed=seed)
    # No threads: an item costs the host a few ms, which asynchronous dispatch hides,
    # and a verifier that forks must not find threads. Batching after to_iter_dataset
    # makes grain count its state in steps, whatever K is.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    batches = iter(steps.to_iter_dataset(options).batch(steps_per_dispatch))
    return Stream(batches, digest.fingerprint(prompts))


class Stream:
    """The iterator that `stream` returns; its state includes the data's fingerprint."""

    def __init__(self, batches: "grain.DatasetIterator", fingerprint: str):
        self._batches, self._fingerprint = batches, fingerprint

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Prompts:
        return next(self._batches)

    def get_state(self) -> dict[str, Any]:
        """A JSON-able dict: the fingerprint of the prompts and the steps handed out."""
        return {"prompts": self._fingerprint, "place": self._batches.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues after a state; raises ValueError if it is of other prompts."""
        if state["prompts"] != self._fingerprint:
            raise ValueError(
                "the encoded prompts must be those that the state was saved with, of"
                f" fingerprint {state['prompts']}, got {self._fingerprint}; restore the"
                " data, tokenizer and template, or start another run."
            )
        self._batches.set_state(state["place"])


class _Steps:
    """The rows i64[P] of every training step, as an endless random-access source."""

    def __init__(self, size: int, num_prompts: int, seed: int):
        self._num_prompts = num_prompts
        self._steps_per_epoch = size // num_prompts
        # grain's own shuffle runs row by row in Python. It also seeds epochs with
        # seed + epoch, so that runs with neighbouring seeds would share orders.
        self._order = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(size)
        )

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, step = divmod(step, self._steps_per_epoch)
        start = step * self._num_prompts
        return self._order(epoch)[start : start + self._num_prompts]


def _check_stream(size, num_prompts):
    if not 1 <= num_prompts <= size:
        raise ValueError(
            f"num_prompts must be in [1, {size}], the size of the data set, got"
            f" {num_prompts}; lower num_prompts or add problems."
        )
