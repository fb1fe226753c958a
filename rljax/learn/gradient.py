"""The gradient of one optimiser step: measure, weigh, differentiate, pull back.

The loss is differentiated with respect to the token statistics, which gives a cotangent
per token. The model's VJP then pulls the cotangents back to the parameters, one piece
of the minibatch after the other. So the gradient is a sum over pieces for every method,
even if its weights compare tokens of different pieces.

This needs losses that are local to their rows. A loss that is not (`Term.local` is
False) is differentiated at the statistics of the whole minibatch, which a forward pass
of its own measures first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import mesh
from rljax.advantage.algebra import Algorithm, reads_current
from rljax.layout import over_tokens
from rljax.learn import microbatch, origin
from rljax.learn.microbatch import Pieces
from rljax.policy import returned
from rljax.policy.frozen import joined
from rljax.types import Credit, Measure, Rollout, TokenStats, TrainState, is_measured

Forward = Callable[[Any, Rollout], TokenStats]
"""(trained parameters, rollout) -> statistics of its tokens."""


class Gradient(NamedTuple):
    """The gradient of a minibatch's loss, and the values it was computed from.

    grads: a tree like the parameters, in at least float32.
    loss: f32[].
    coefficient: f32[P, G, T] -dL/dlogp, how hard each token is pushed.
    now: the current policy's statistics.
    credits: the credit of each term, after weighing.
    algorithm_state: the algorithm's state after weighing.
    metrics: what the weighing logged.
    """

    grads: Any
    loss: jax.Array
    coefficient: jax.Array
    now: TokenStats
    credits: tuple[Credit, ...]
    algorithm_state: Any
    metrics: dict[str, jax.Array]


def of_minibatch(
    measure: Measure,
    algorithm: Algorithm,
    pieces: Pieces,
    credits: tuple[Credit, ...],
    batch: Rollout,
    state: TrainState,
    first: jax.Array,
) -> Gradient:
    """The gradient of one optimiser step at `state.params`.

    If the batch is one piece, a single forward pass serves both weighing and pulling
    back. With several pieces, weighing needs a forward pass of its own if it reads
    `current`. The first optimiser step on samples of these very parameters needs none,
    as there `current` is `old`.

    Args:
      measure: (params, prompts, samples, reference) -> TokenStats.
      algorithm: what to minimise.
      pieces: how the batch is cut; only the activations of one piece exist at a time.
      credits: one per term, before weighing.
      batch: the minibatch.
      state: parameters, reference and the algorithm's state.
      first: bool[], whether this is the first optimiser step on the rollout batch.

    Raises:
      ValueError: when traced, if `measure` returns no statistics [P, G, T].
    """

    def forward(params, rows):
        params, reference = (joined(p, state.frozen) for p in (params, state.reference))
        now = measure(params, rows.prompts, rows.samples, reference)
        return returned.statistics(now, rows.samples, "the learner's measure")

    fits = jax.lax.cond(
        first, lambda: origin.fits(batch, state.params), lambda: jnp.zeros((), bool)
    )
    batch = batch.without("origin", "current")
    if pieces == Pieces():
        return _of_whole(forward, algorithm, credits, batch, state)
    seen = batch
    reads = reads_current(algorithm, credits, batch, state.algorithm)
    if reads or not algorithm.local():
        current = _current(forward, pieces, batch, state.params, fits)
        seen = batch.replace(current=current)
    credits, algorithm_state, metrics = algorithm.weigh(credits, seen, state.algorithm)
    grads, loss, (coefficient, now) = _of_pieces(
        forward, algorithm, credits, seen, state.params, pieces
    )
    return Gradient(grads, loss, coefficient, now, credits, algorithm_state, metrics)


def _of_pieces(
    forward: Forward,
    algorithm: Algorithm,
    credits: tuple[Credit, ...],
    batch: Rollout,
    params: Any,
    pieces: Pieces,
):
    """The gradient, the loss, and (coefficient, statistics) of the whole minibatch.

    Args:
      batch: with `current`, if the algorithm's losses are not local.
    """
    # `cut` is cut into pieces beside the batch. From a piece's statistics and its part
    # of `cut`, `push` computes the piece's loss and the cotangent of the statistics.
    if algorithm.local():
        begin, cut = 0.0, credits

        def push(now, credits, rows):
            return _at_statistics(algorithm, now, credits, rows)

    else:
        begin, cut = _at_statistics(algorithm, batch.current, credits, batch)

        def push(now, cotangent, rows):
            del now, rows
            return jnp.zeros(()), cotangent

    def add(part, rows, total):
        now, pull_back = jax.vjp(lambda p: forward(p, rows), params)
        loss, cotangent = push(now, part, rows)
        (grads,) = pull_back(cotangent)
        total = mesh.keep_state(jax.tree.map(jnp.add, total, grads))
        return total, loss, (-cotangent.logp, now)

    zeros = jax.tree.map(lambda p: _widened(jnp.zeros_like(p)), params)
    grads, loss, arrays = microbatch.over_pieces(
        add, cut, batch.without("current"), mesh.keep_state(zeros), pieces
    )
    return grads, begin + loss, arrays


def _of_whole(
    forward: Forward,
    algorithm: Algorithm,
    credits: tuple[Credit, ...],
    batch: Rollout,
    state: TrainState,
) -> Gradient:
    """The gradient of a minibatch that is one piece, from a single forward pass."""
    now, pull_back = jax.vjp(lambda p: forward(p, batch), state.params)
    seen = batch.replace(current=jax.lax.stop_gradient(now))
    credits, algorithm_state, metrics = algorithm.weigh(credits, seen, state.algorithm)
    loss, cotangent = _at_statistics(algorithm, now, credits, batch)
    (grads,) = pull_back(cotangent)
    grads = mesh.keep_state(jax.tree.map(_widened, grads))
    return Gradient(
        grads, loss, -cotangent.logp, now, credits, algorithm_state, metrics
    )


def _at_statistics(algorithm, now, credits, rows) -> tuple[jax.Array, TokenStats]:
    """The loss and its derivative with respect to each token statistic.

    The derivative is set to 0 outside the mask, where statistics may be NaN.
    """
    loss, cotangent = jax.value_and_grad(algorithm.loss)(now, credits, rows)
    mask = rows.samples.mask

    def inside(x):
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 3)), x, 0.0)

    return loss, over_tokens(inside, cotangent)


def _current(forward: Forward, pieces: Pieces, batch, params, fits) -> TokenStats:
    """The current policy's statistics: `old` if `fits` is True, else measured."""

    def measured():
        def measure(credits, rows, carry):
            return carry, (), forward(params, rows)

        return microbatch.over_pieces(measure, (), batch, (), pieces)[2]

    wanted = jax.tree.structure(jax.eval_shape(measured))
    if not is_measured(batch.old) or jax.tree.structure(batch.old) != wanted:
        return measured()  # the method may need more than the sampler returned
    return jax.lax.cond(fits, lambda: batch.old, measured)


def _widened(x: jax.Array) -> jax.Array:
    """In at least float32: a narrower sum would lose small contributions of pieces."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
