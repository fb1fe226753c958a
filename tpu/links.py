"""Estimates what a chip receives in collectives, by arithmetic, without compiling.

It counts weights, their gradients, and the activations that `tensor` sums, so that a
search can choose between meshes; docs/atlas.md compares it with compiled programs.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from rljax import mesh
from rljax.program import Sizes
from tpu import roofline
from tpu.roofline import Moved

_GATHERS = 7
"""Matrices of a layer, each of which is gathered alone."""
_SUMS = 8
"""Sums of activations per layer in an update over `tensor`: of o and down, forward; of
o again, recomputed; and backward of the inputs of q, k, v, gate and up."""


def by_arithmetic(
    sizes: Sizes, num_parameters: int, axes: Mapping[str, int]
) -> dict[str, Moved]:
    """Phase -> collectives of a training step.

    As in `roofline.received`, a gather brings a chip all of the result, and a sum twice
    as much. Metrics and batch statistics are not counted.

    Args:
      sizes: of the step.
      num_parameters: of the decoder.
      axes: mesh axis -> devices along it.
    """
    c = sizes.decoder
    found = {}
    if roofline.parts(axes, mesh.FSDP, mesh.EXPERT) > 1:
        sampled = roofline.sampled_parameters(c, num_parameters, axes)
        weights = jnp.dtype(c.dtype).itemsize * sampled
        found["prefill"] = Moved(weights, _GATHERS * c.num_layers)
        found["sample"] = Moved(weights, _GATHERS)
    found["decode"] = _while_decoding(sizes, axes)
    found["update"] = _in_updates(sizes, num_parameters, axes)
    return {phase: moved for phase, moved in found.items() if moved.times}


def _while_decoding(sizes: Sizes, axes: Mapping[str, int]) -> Moved:
    """Sums over `tensor`; rows of a mixture, which come to all chips along `expert`."""
    c, size, times = sizes.decoder, 0.0, 0
    rows, token = _rows(sizes, axes), _token_bytes(sizes)
    if roofline.parts(axes, mesh.TENSOR) > 1:
        times += 2 * c.num_layers + 1
        size += 2 * times * rows * token
    expert = roofline.parts(axes, mesh.EXPERT)
    if expert > 1 and c.experts is not None:
        times += 2 * c.num_layers  # there and back
        size += 2 * c.num_layers * expert * rows * token
    steps = sizes.max_tokens - 1
    return Moved(steps * size, steps * times * sizes.num_rounds)


def _in_updates(sizes: Sizes, num_parameters: int, axes: Mapping[str, int]) -> Moved:
    """Weights and gradients, and sums of activations over `tensor`.

    Where each chip has prompts of its own, `tensor` acts like `fsdp`.
    """
    c, num, pieces = sizes.decoder, roofline.num_chips(axes), sizes.num_pieces
    stored = roofline.parts(axes, mesh.FSDP, mesh.EXPERT)
    tensor = roofline.parts(axes, mesh.TENSOR)
    if sizes.num_prompts // sizes.num_prompt_pieces % num == 0:
        stored, tensor = stored * tensor, 1
    size = times = 0.0
    if stored > 1:  # weights forward and backward, and gradients in float32
        each = 2 * jnp.dtype(c.dtype).itemsize + 4
        size += pieces * each * num_parameters / tensor
        times += pieces * 3 * _GATHERS * c.num_layers
    if roofline.parts(axes, mesh.DATA) > 1:
        size += pieces * 2 * 4 * num_parameters / (stored * tensor)
        times += pieces
    if tensor > 1:
        rows, sums = _rows(sizes, axes), _SUMS * c.num_layers
        prompts = sizes.num_group_parts * rows / sizes.num_samples
        tokens = rows * sizes.max_tokens + prompts * sizes.prompt_tokens
        size += 2 * sums * tokens * _token_bytes(sizes)
        times += sums * pieces
    return Moved(sizes.num_passes * size, sizes.num_passes * times)


def _rows(sizes: Sizes, axes: Mapping[str, int]) -> float:
    """Rows of a chip; chips along `tensor` share them."""
    chips = roofline.num_chips(axes) / roofline.parts(axes, mesh.TENSOR)
    return sizes.num_prompts * sizes.num_samples / chips


def _token_bytes(sizes: Sizes) -> int:
    """Bytes of the activations of a token between layers."""
    return jnp.dtype(sizes.decoder.dtype).itemsize * sizes.decoder.d_model
