"""Environments: tools, games or speakers that answer within a completion.

An environment is a pair of pure functions of *one* sample; the sampler maps them over
all samples. After each token the environment may force the next one:

    init: (prompt, key) -> (state, forced)
    step: (state, token) -> (state, forced)

`forced` is the token that must come next, or `FREE` if the policy chooses it. A forced
token is fed to the policy like any other, but it lies outside the mask and is not
trained on. `step` is called for every token, also for forced ones. So an environment
keeps an answer of several tokens as a queue in its state.

A stop token ends a sample unless the environment forces a token after it. An
environment ends a sample by forcing a stop token.

The state is any tree of arrays; the sampler only carries it. Its last value becomes
`samples.environment`, which a verifier may read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import keys
from rljax.types import Prompts

FREE = -1
"""The value of `forced` that lets the policy choose the next token."""


class Environment(NamedTuple):
    """The functions of one sample.

    init: (prompt, key) -> (state, forced i32[]); `prompt` is one row of `Prompts`,
      without the axis P; `key` belongs to this sample of this training step.
    step: (state, token i32[]) -> (state, forced i32[]).
    """

    init: Callable[[Prompts, jax.Array], tuple[Any, jax.Array]]
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]]


class Turn(NamedTuple):
    """The status of the rows' environments; arrays [..., rows, ...].

    state: the environment's state.
    forced: i32, the token that must come next, or FREE.
    finished: bool, the row ended with a stop token or stop string.
    """

    state: Any
    forced: jax.Array
    finished: jax.Array


def begin(environment: Environment, prompts: Prompts, key: jax.Array, num_samples: int):
    """The `Turn` [P, G] of samples that have no token yet.

    Args:
      key: the step's key.
    """

    def init(prompt, number):
        own = keys.stream(key, keys.Stream.ENVIRONMENT, prompt.id, number)
        state, forced = _checked("init", environment.init(prompt, own))
        return Turn(jax.tree.map(_strong, state), forced, jnp.zeros((), bool))

    over_samples = jax.vmap(init, (None, 0))
    return jax.vmap(over_samples, (0, None))(prompts, jnp.arange(num_samples))


def force(turn: Turn, written: dict[str, Any]) -> dict[str, Any]:
    """The result of a draw, with forced tokens in place of the drawn ones.

    All else of a forced token becomes 0 and False: it was not drawn.
    """
    free = turn.forced < 0
    token = jnp.where(free, written["token"], turn.forced)
    own = jax.tree.map(lambda x: jnp.where(free, x, jnp.zeros_like(x)), written)
    return own | {"token": token}


def answer(environment: Environment, turn: Turn, token: jax.Array, is_stop: jax.Array):
    """The `Turn` after these tokens i32[items, rows]; `is_stop` marks end tokens."""

    def step(state, token):
        new, forced = _checked("step", environment.step(state, token))
        _require_same(state, new)
        return new, forced

    state, forced = jax.vmap(jax.vmap(step))(turn.state, token)
    return Turn(state, forced, is_stop & (forced < 0))


def _strong(x):
    x = jnp.asarray(x)
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, x.dtype)


def _checked(name: str, reply):
    """The reply of a user's function, checked while it is traced."""
    if not isinstance(reply, tuple) or len(reply) != 2:
        raise ValueError(
            f"{name} of an environment must return (state, forced), got"
            f" {type(reply).__name__}; return both."
        )
    state, forced = reply
    forced = jnp.asarray(forced)
    if forced.shape or not jnp.issubdtype(forced.dtype, jnp.signedinteger):
        raise ValueError(
            f"{name} of an environment must return the forced token as i32[], got"
            f" {forced.dtype}{list(forced.shape)}; return one token, or FREE."
        )
    return state, forced.astype(jnp.int32)


def _require_same(old, new) -> None:
    def describe(tree):
        described = jax.tree.map(lambda x: f"{jnp.result_type(x)}{jnp.shape(x)}", tree)
        return jax.tree.structure(tree), jax.tree.leaves(described)

    if describe(old) != describe(new):
        raise ValueError(
            "step of an environment must return a state with the structure, shapes and"
            f" dtypes of the one it takes, {describe(old)}, got {describe(new)}; change"
            " init or step."
        )
