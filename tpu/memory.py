"""What a training step needs of a chip's memory, by arithmetic: nothing is compiled.

It sees arrays, and neither padding nor what a compiler keeps twice: beside compiled
programs of 0.5B it was a quarter short. So it says what cannot fit, and where to begin
to look for what does.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from rljax import mesh
from rljax.plan import cost
from rljax.program import Program, Sizes
from tpu import chips, roofline

GIB = 2**30


class Memory(NamedTuple):
    """Bytes of a chip.

    state: parameters, optimiser and what else the run keeps.
    caches, weights: while sampling, keys and values, and weights in the activations'
      format.
    gradients, inputs, logits: while updating, the sums of gradients and those of the
      backward passes over prompts and completions; inputs of all layers, kept for the
      backward pass; logits held at once.
    """

    state: float
    caches: float
    weights: float
    gradients: float
    inputs: float
    logits: float

    @property
    def peak(self) -> float:
        """The larger half of the step, beside the state."""
        sampling = self.caches + self.weights
        return self.state + max(sampling, self.gradients + self.inputs + self.logits)


def by_arithmetic(
    program: Program, sizes: Sizes, axes: Mapping[str, int], param_bytes: int
) -> Memory:
    """The memory of a chip of a mesh with these axes.

    Args:
      param_bytes: of the parameters as they are stored.
    """
    c, num = sizes.decoder, roofline.num_chips(axes)
    itemsize = jnp.dtype(c.dtype).itemsize
    stored = roofline.parts(axes, mesh.FSDP, mesh.EXPERT, mesh.TENSOR)
    rows = sizes.num_prompts * sizes.num_samples / sizes.num_pieces / num
    tokens = rows * sizes.max_tokens + sizes.prompt_tokens * rows / sizes.num_samples
    count = param_bytes / _itemsize(program.state.params)
    sampling = roofline.parts(axes, mesh.TENSOR)
    return Memory(
        state=cost.num_bytes(program.state) / stored,
        caches=sum(cost.cache_bytes(sizes)) / num,
        weights=count * itemsize / sampling,
        gradients=3 * param_bytes / stored,
        inputs=c.num_layers * tokens * c.d_model * itemsize,
        logits=4 * min(rows * sizes.max_tokens * c.vocab_size, cost.MAX_LOGITS),
    )


def _itemsize(params) -> float:
    return cost.num_bytes(params) / max(1, cost.num_elements(params))


def fitting(program: Program, sizes: Sizes, kind: str) -> list[str]:
    """Slices of a kind of chip on which it fits, as far as arithmetic sees."""
    param_bytes = cost.num_bytes(program.state.params)
    found = []
    for topology in chips.known():
        place = chips.parse(topology)
        if place.kind == kind and _divides(sizes, place):
            axes = {mesh.FSDP: place.num_chips}
            needed = by_arithmetic(program, sizes, axes, param_bytes)
            if needed.peak <= place.chip.hbm_gib * GIB:
                found.append(topology)
    return found


def _divides(sizes: Sizes, place: chips.Slice) -> bool:
    pieces = sizes.num_minibatches * sizes.num_microbatches
    return math.gcd(sizes.num_prompts, place.num_chips * pieces) >= place.num_chips


def refusal(
    program: Program, sizes: Sizes, place: chips.Slice, needed: float, how: str
) -> str:
    """That it does not fit on a slice, and what would.

    Args:
      needed: bytes of a chip.
      how: how that is known.
    """
    larger = [
        f for kind in ("v5e", "v6e", "v5p") for f in fitting(program, sizes, kind)
    ]
    larger = [f for f in larger if f != str(place)]
    advice = "--num-microbatches doubled, fewer --num-prompts, --num-samples or"
    advice += " --max-tokens, --num-slots, --mu-dtype bfloat16, --optimizer adafactor"
    where = f"one of {', '.join(larger)}" if larger else "no slice known here"
    return (
        f"a chip must hold what it needs, {place.chip.hbm_gib:g} GiB on"
        f" {place}, but it needs {needed / GIB:,.1f} GiB ({how}); by arithmetic"
        f" it fits with --mesh fsdp over {where}; or take {advice}."
    )
