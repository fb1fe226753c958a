"""Reads a decoder's hidden states, and steers its layers, without changing the decoder.

Both functions wrap any function that runs a decoder and intercept flax's method calls.
Symbols: `L` layers, `E` width of the model.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.model.block import Block
from rljax.model.transformer import Decoder
from rljax.types import Prompts, Samples


def recorded(fn: Callable) -> Callable:
    """Makes `(params, prompts, samples) -> (fn's result, states)`.

    Args:
      fn: a policy's `measure` or `hidden`: (params, prompts, samples) -> anything.

    Returns:
      A function whose `states` are L + 1 arrays [P, G, T, E], numbered as in Hugging
      Face: the embedding, the outputs of all layers but the last, and the last layer's
      output after the final norm. The states at t predict completion token t.

    Raises:
      ValueError: when traced, if `fn` runs no decoder.
    """

    def recording(params, prompts: Prompts, samples: Samples):
        seen: list[list[jax.Array]] = []

        def record(call, args, kwargs, context):
            out = call(*args, **kwargs)
            module, method = context.module, context.method_name
            if isinstance(module, Block) and method == "__call__":
                # The scan over layers stacks second outputs: `apply_layers` below takes
                # the states out of them.
                x, output = out
                return x, (output, x)
            if isinstance(module, Decoder) and method == "apply_layers":
                x, outputs = out
                states = jnp.stack([x for _, x in outputs], 1)  # [N, M, rows, E]
                seen[-1].extend(states.reshape(-1, *x.shape))
                return x, tuple(output for output, _ in outputs)
            if isinstance(module, Decoder) and method == "embed_tokens":
                seen.append([out])  # a new pass: first over prompts, then completions
            elif method == "__call__" and module.name == "norm":
                seen[-1].append(out)
            return out

        with nn.intercept_methods(record):
            out = fn(params, prompts, samples)
        if not seen:
            raise ValueError(
                "recorded(fn) needs a function that runs a decoder, but fn ran none;"
                " pass the measure function of a decoder_policy."
            )
        P, G, T = samples.tokens.shape
        # The final norm's output replaces that of the last layer.
        passes = [[*states[:-2], states[-1]] for states in seen]
        states = [_first(x, prompts, G) for x in passes[0]]
        if T > 1:
            rest = [x.reshape(P, G, T - 1, -1) for x in passes[1]]
            states = [
                jnp.concatenate(pair, 2) for pair in zip(states, rest, strict=True)
            ]
        return out, tuple(states)

    return recording


def _first(x: jax.Array, prompts: Prompts, num_samples: int) -> jax.Array:
    """[P, G, 1, E]: the states after the last tokens of the prompts."""
    P = prompts.length.shape[0]
    x = x.reshape(P, -1, x.shape[-1])  # [P, S, E], or [P, 1, E] if gathered already
    last = x[jnp.arange(P), jnp.minimum(prompts.length, x.shape[1]) - 1]
    return jnp.broadcast_to(last[:, None, None], (P, num_samples, 1, x.shape[-1]))


def steered(fn: Callable, vectors: jax.Array, strength: jax.typing.ArrayLike):
    """`fn` with the output of every layer's MLP rotated towards a steering vector.

    Args:
      fn: any function that runs a decoder.
      vectors: f32[L, E], one direction per layer.
      strength: of the rotation, 0 for none; see `turned`.

    Raises:
      ValueError: when traced, if the decoder has experts.
    """

    def steering(*args):
        layers: list[jax.Array] = []  # the number of the layer that runs

        def steer(call, args, kwargs, context):
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if isinstance(context.module, Block):
                if context.module.config.experts is not None:
                    raise ValueError(
                        "steered(fn) needs a decoder with one MLP per layer, but this"
                        " decoder has experts; choose another model."
                    )
                layers[:] = [args[1]]
            out = call(*args, **kwargs)
            if context.module.name == "down":
                out = turned(out, vectors[layers[0]], strength)
            return out

        with nn.intercept_methods(steer):
            return fn(*args)

    return steering


def turned(z: jax.Array, direction: jax.Array, strength) -> jax.Array:
    """|z| unit(unit(z) + strength unit(direction)): rotates z and keeps its norm."""

    def unit(x):
        square = jnp.sum(jnp.square(x), -1, keepdims=True)
        # A zero vector has no direction: return 0, with a gradient of 0, not NaN.
        return jnp.where(
            square > 0, x * jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0
        )

    size = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(z), -1, keepdims=True), 1e-30))
    return (size * unit(unit(z) + strength * unit(direction))).astype(z.dtype)
