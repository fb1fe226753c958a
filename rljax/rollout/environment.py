"""Environments: what answers within a completion, such as tools, games or speakers.

An environment is a pair of pure functions of *one* sample; the sampler maps them over
all samples. After each token it may force the next one:

    init: (prompt, key) -> (state, forced)
    step: (state, token) -> (state, forced)

`forced` is the token that must come next, or `FREE` where the policy chooses. A forced
token is fed to the policy like any other, and is outside the mask: it is not trained
on. `step` sees every token, the forced ones too, so an answer of several tokens is a
queue in `state`. A stop token ends a sample unless the environment forces a token after
it; so an environment ends a sample by forcing a stop token.

The state is any tree of arrays. The sampler carries it and never looks into it. Its
last value is `samples.environment`, for a verifier to read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import keys
from rljax.types import Prompts

FREE = -1
"""Instead of a forced token: the policy chooses the next one."""


class Environment(NamedTuple):
    """The functions of one sample.

    init: (prompt, key) -> (state, forced i32[]); `prompt` is one of the `Prompts`,
      without their first axis, `key` belongs to this sample of this step alone.
    step: (state, token i32[]) -> (state, forced i32[]).
    """

    init: Callable[[Prompts, jax.Array], tuple[Any, jax.Array]]
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]]


class Turn(NamedTuple):
    """Where the environments of rows stand; arrays [..., rows, ...].

    state: the environment's own.
    forced: i32, the token that must come next, or FREE.
    finished: bool, the row ended with a stop token.
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
    """What a draw wrote down, with the forced tokens in place of the drawn ones.

    Statistics of forced tokens are 0: nobody chose them.
    """
    free = turn.forced < 0
    token = jnp.where(free, written["token"], turn.forced)
    own = jax.tree.map(lambda x: jnp.where(free, x, jnp.zeros_like(x)), written)
    return own | {"token": token}


def answer(environment: Environment, turn: Turn, token: jax.Array, is_stop: jax.Array):
    """The `Turn` after these tokens i32[items, rows]."""

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
            "step of an environment must return a state of the same structure, shapes"
            f" and dtypes as it took, {describe(old)}, got {describe(new)}; change init"
            " or step."
        )
