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
    c, num = sizes.decoder, roofline.num_chips(axes)
    itemsize = jnp.dtype(c.dtype).itemsize
    tensor = roofline.parts(axes, mesh.TENSOR)
    fsdp = roofline.parts(axes, mesh.FSDP, mesh.EXPERT)
    data = roofline.parts(axes, mesh.DATA)
    # Rows and tokens of a chip; chips along `tensor` share them.
    rows = sizes.num_prompts * sizes.num_samples * tensor / num
    prompts = sizes.num_group_parts * rows / sizes.num_samples
    tokens = rows * sizes.max_tokens + prompts * sizes.prompt_tokens
    summed = 2 * itemsize * c.d_model  # bytes of a token
    gathers = _GATHERS * c.num_layers
    found = {}
    if fsdp > 1:
        weights = itemsize * num_parameters / tensor
        found["prefill"] = Moved(weights, gathers)
        found["sample"] = Moved(weights, _GATHERS)
    if tensor > 1:
        sums = (2 * c.num_layers + 1) * (sizes.max_tokens - 1)
        found["decode"] = Moved(sums * rows * summed, sums * sizes.num_rounds)
    # Where each chip has prompts of its own in an update, `tensor` acts like `fsdp`.
    apart = sizes.num_prompts // sizes.num_prompt_pieces % num == 0
    stored, used = (fsdp * tensor, 1) if apart else (fsdp, tensor)
    update = []
    if stored > 1:  # weights forward and backward, and gradients in float32
        size = (2 * itemsize + 4) * num_parameters / used
        update.append(Moved(sizes.num_pieces * size, sizes.num_pieces * 3 * gathers))
    if data > 1:
        size = 2 * 4 * num_parameters / (stored * used)
        update.append(Moved(sizes.num_pieces * size, sizes.num_pieces))
    if used > 1:
        sums = _SUMS * c.num_layers
        update.append(Moved(sums * tokens * summed, sums * sizes.num_pieces))
    if update:
        size, times = (sizes.num_passes * sum(each) for each in zip(*update))
        found["update"] = Moved(size, times)
    return found
