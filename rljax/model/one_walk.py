"""Prompts and completions in one pass over the layers, for meshes.

On a mesh, each layer gathers its weights and scatters their gradients. Calling
`Decoder.prefill` and then `Decoder.score` would do that twice. Here the rows of prompts
and completions lie side by side, [P, S + G * T], and go through each product together.
Only attention separates them.
"""

import jax
import jax.numpy as jnp

from rljax.model import causal
from rljax.model.attention import KeyValue
from rljax.model.replay import Routes
from rljax.model.transformer import Decoder, flat_routes, routes_of


def walk(decoder: Decoder, prompts, length, tokens, mask, given: Routes):
    """The hidden states that `Decoder.prefill` and `Decoder.score` return, and routes.

    Args:
      decoder: a bound module.
      prompts, length: tokens i32[P, S] and their number i32[P].
      tokens, mask: of the completions, i32[P, G, T] and bool[P, G, T].
      given: experts that replace the routers' choices; its fields may be None.

    Returns:
      The states [P, d_model] after each prompt's last token, the states
      [P, G, T, d_model] of the completions' tokens, and the routers' own choices.
    """
    c, (P, S), (_, G, T) = decoder.config, prompts.shape, tokens.shape
    in_prompt = jnp.arange(S) < length[:, None]

    def beside(of_prompts, of_tokens):  # [P, S, ...] and [P, G, T, ...]
        of_tokens = of_tokens.reshape(P, G * T, *of_tokens.shape[3:])
        return jnp.concatenate([of_prompts, of_tokens], 1)

    def apart(x):  # the inverse of `beside`, for x [P * (S + G * T), ...]
        x = x.reshape(P, S + G * T, *x.shape[1:])
        return x[:, :S], x[:, S:].reshape(P, G, T, *x.shape[2:])

    places = jnp.broadcast_to(jnp.arange(S), (P, S))
    after = length[:, None, None] + jnp.broadcast_to(jnp.arange(T), (P, G, T))
    x = decoder.embed_tokens(beside(prompts, tokens), beside(in_prompt, mask))

    def attend(q, own, window, *_):
        (q_prompt, q), (prompt, own) = _queries_apart(q, S, G), _keys_apart(own, S, G)
        first = causal.attend(c, q_prompt, prompt, window=window)
        rest = causal.attend(c, q, own, prompt, in_prompt, window=window)
        rest = jnp.moveaxis(rest, 2, 3).reshape(*first.shape[:4], G * T, -1)
        return jnp.concatenate([first, rest], -2), None

    routes = None if given.prompt is None else beside(given.prompt, given.completion)
    x, outputs = decoder.apply_layers(
        x,
        (P, 1, S + G * T),
        decoder.rope(beside(places, after), S + T),
        attend,
        given=flat_routes(routes),
    )
    of_prompts, states = apart(x)
    last = jnp.take_along_axis(of_prompts, (length - 1)[:, None, None], axis=1)[:, 0]
    own = routes_of(outputs, (P * (S + G * T),))
    own = Routes(None, None) if own is None else Routes(*apart(own))
    return decoder.norm(last), decoder.norm(states), own


def _queries_apart(q: jax.Array, S: int, G: int):
    """[P, H, 1, R, S + G * T, D] -> [P, H, 1, R, S, D] and [P, H, G, R, T, D]."""
    P, H, _, R, _, D = q.shape
    rest = q[..., S:, :].reshape(P, H, R, G, -1, D)
    return q[..., :S, :], jnp.moveaxis(rest, 3, 2)


def _keys_apart(keys: KeyValue, S: int, G: int) -> tuple[KeyValue, KeyValue]:
    """[P, H, S + G * T, D] -> [P, H, S, D] and [P, H * G, T, D]."""

    def of_tokens(x):
        P, H, N, D = x.shape
        return x[:, :, S:].reshape(P, H * G, (N - S) // G, D)

    return jax.tree.map(lambda x: x[:, :, :S], keys), jax.tree.map(of_tokens, keys)
