"""Random streams: every draw of a run has a name. Only this file folds keys.

A key is a node of a tree. `stream` goes down from it: to the name of a draw, then to
the numbers that tell one draw of this name from another. Two laws keep draws apart:

- Names come first. So no step, prompt id or sample number is ever read as a name.
- A name is always followed by the same numbers. So no draw's key has keys below it:
  JAX makes random bits and folded keys by the same function, and bits drawn at a node
  would repeat the keys below it.
"""

import enum

import jax


class Stream(enum.IntEnum):
    """The names, each with the numbers that follow it; `...` where names follow."""

    PARAMETERS = 1  # of a run: initial parameters; of a phase: further ones, ...
    PHASE = 2  # of a run: number of the phase, ...
    STEP = 3  # of a phase: training step, ...
    SAMPLE = 4  # of a step: prompt id, sample, position
    SOURCE = 5  # of a step: number of the sampler among those joined, ...
    SHUFFLE = 6  # of a step: pass
    HINT = 7  # of a step: prompt id
    STEERING = 8  # of a phase: initial vectors of `steering_learner`
    TOKEN_FILTER = 9  # of a seed: update, prompt id, sample
    ENVIRONMENT = 10  # of a step: prompt id, sample
    ADAPTER = 11  # of a phase's parameters: number of the matrix


def stream(key: jax.Array, name: Stream, *numbers: jax.typing.ArrayLike) -> jax.Array:
    """The key below `key` with this name and these numbers (scalars, 32 bits)."""
    return at(jax.random.fold_in(key, int(name)), *numbers)


def at(key: jax.Array, *numbers: jax.typing.ArrayLike) -> jax.Array:
    """Goes on from a key that lacks its last numbers."""
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def of_step(key: jax.Array, step: jax.typing.ArrayLike) -> jax.Array:
    """The key of a training step, from `TrainState`'s key and step."""
    return stream(key, Stream.STEP, step)
