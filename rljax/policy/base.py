"""What the library knows of a policy: pure functions over a parameter pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rljax.types import Measure, Prompts, Samples


class Policy(NamedTuple):
    """A language model as pure functions.

    All logits belong to the distribution that is sampled and trained: they have been
    divided by the temperature.

    init: key -> params.
    prefill: (params, prompts) -> (logits f32[P, V], prompt); logits of each
      completion's first token, and what decoding reads of a prompt, leaves [P, ...].
    init_cache: (prompt, num_samples, max_tokens) -> cache of completions to come.
    decode: (decode_params, tokens i32[P, G], t i32[P], prompt, cache) -> (logits
      f32[P, G, V], cache); feeds completion token number t (from 0), returns the logits
      of the next. Where t is 0 a new completion begins, whatever the cache holds.
    hidden: (params, prompts, samples) -> [P, G, T, D], normalised final states; the
      state at t predicts completion token t.
    logits: (params, hidden [..., D]) -> f32[..., V].
    measure: (params, prompts, samples, reference=None) -> TokenStats of the
      completions' tokens; what sampler and learner compute agrees to rounding. A policy
      alone compares with no reference and ignores it.
    decode_params: params -> what `decode` reads of them, made once per rollout.
    recorded: (prompt or cache) -> arrays by name that the samples are to record of how
      tokens were computed: of a prompt's tokens [P, S, ...], of those that `decode` fed
      last [P, G, ...]. Most policies have nothing to record.
    logits_params: params -> those that `logits` reads, as it takes them.
    """

    init: Callable[[jax.Array], Any]
    prefill: Callable[[Any, Prompts], tuple[jax.Array, Any]]
    init_cache: Callable[[Any, int, int], Any]
    decode: Callable[[Any, jax.Array, jax.Array, Any, Any], tuple[jax.Array, Any]]
    hidden: Callable[[Any, Prompts, Samples], jax.Array]
    logits: Callable[[Any, jax.Array], jax.Array]
    measure: Measure
    decode_params: Callable[[Any], Any] = lambda params: params
    recorded: Callable[[Any], dict[str, jax.Array]] = lambda prompt_or_cache: {}
    logits_params: Callable[[Any], Any] = lambda params: params
