"""Random streams: every draw of a run has a name. Only this file folds keys.

Keys form a tree. `stream` descends from a key to the name of a draw, then to the
numbers that distinguish the draws of that name. Two laws keep all draws independent:

- The name comes before the numbers. So no step, prompt id or sample number is ever
  taken for a name.
- A name is always followed by the same numbers. So no key that is drawn from has keys
  below it. JAX makes random bits and folded keys with the same function: bits drawn at
  a node would repeat the keys below it.
"""

import enum

import jax


class Stream(enum.IntEnum):
    """The names of draws.

    Each comment lists the numbers that follow the name; `...`: then a further name.
    """

    PARAMETERS = 1  # of a run: initial parameters; of a phase: further ones, ...
    PHASE = 2  # of a run: number of the phase, ...
    STEP = 3  # of a phase: training step, ...
    SAMPLE = 4  # of a step: prompt id, sample, position
    SOURCE = 5  # of a step: index of a sampler in `mixed.side_by_side`, ...
    SHUFFLE = 6  # of a step: pass
    HINT = 7  # of a step: prompt id
    STEERING = 8  # of a phase: initial vectors of `steering_learner`
    TOKEN_FILTER = 9  # of a seed: update, prompt id, sample
    ENVIRONMENT = 10  # of a step: prompt id, sample
    ADAPTER = 11  # of a phase's parameters: number of the matrix


def stream(key: jax.Array, name: Stream, *numbers: jax.typing.ArrayLike) -> jax.Array:
    """The key below `key` for this name and these numbers (32-bit scalars)."""
    return at(jax.random.fold_in(key, int(name)), *numbers)


def at(key: jax.Array, *numbers: jax.typing.ArrayLike) -> jax.Array:
    """Descends further: folds the last numbers into a key that still lacks them."""
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def of_step(key: jax.Array, step: jax.typing.ArrayLike) -> jax.Array:
    """The key of a training step, from `TrainState`'s key and step."""
    return stream(key, Stream.STEP, step)
