"""What the library knows of a policy: pure functions over a parameter pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rljax.types import Prompts, Samples, TokenStats


class Policy(NamedTuple):
    """A language model as pure functions.

    init: key -> params.
    prefill: (params, prompts, num_samples, max_tokens) -> (logits f32[P, V], cache);
      logits of each completion's first token, a cache that G samples share.
    decode: (params, tokens i32[P, G], t, cache) -> (logits f32[P, G, V], cache); feeds
      completion token number t (i32[], from 0), returns the logits of the next one.
    hidden: (params, prompts, samples) -> [P, G, T, D], normalised final states; the
      state at t predicts completion token t.
    logits: (params, hidden [..., D]) -> f32[..., V].
    measure: (params, prompts, samples) -> TokenStats of the completions' tokens at
      temperature 1; what sampler and learner compute agrees to rounding.
    """

    init: Callable[[jax.Array], Any]
    prefill: Callable[[Any, Prompts, int, int], tuple[jax.Array, Any]]
    decode: Callable[[Any, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
    hidden: Callable[[Any, Prompts, Samples], jax.Array]
    logits: Callable[[Any, jax.Array], jax.Array]
    measure: Callable[[Any, Prompts, Samples], TokenStats]
