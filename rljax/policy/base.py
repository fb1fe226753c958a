"""The interface of a policy: pure functions over a parameter pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rljax.types import Measure, Prompts, Samples


class Policy(NamedTuple):
    """A language model as pure functions.

    All logits are divided by the temperature: they belong to the distribution that is
    sampled and trained.

    init: key -> params.
    prefill: (params, prompts) -> (logits f32[P, V], prompt): the logits of each
      completion's first token, and the prompts' cache, a tree with leaves [P, ...].
    init_cache: (prompt, num_samples, max_tokens) -> an empty cache for the completions.
    decode: (decode_params, tokens i32[P, G], t i32[P], prompt, cache) -> (logits
      f32[P, G, V], cache). Feeds completion token number t, counted from 0, and returns
      the logits of the next token. t = 0 begins a new completion, whatever the cache
      holds.
    hidden: (params, prompts, samples) -> [P, G, T, D], final hidden states after the
      last norm; the state at t predicts completion token t.
    logits: (params, hidden [..., D]) -> f32[..., V].
    measure: (params, prompts, samples, reference=None) -> TokenStats of the samples'
      tokens. It agrees with `decode` up to rounding. A plain policy ignores
      `reference`.
    decode_params: params -> the parameters as `decode` takes them; called once per
      rollout.
    recorded: prompt or cache -> arrays by name to be stored in the samples: those of
      prompt tokens [P, S, ...], or those of the tokens that `decode` fed last
      [P, G, ...]. Most policies record nothing.
    logits_params: params -> the part of them that `logits` reads.
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
