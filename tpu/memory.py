"""What a training step needs of a chip's memory, by arithmetic: nothing is compiled.

It sees arrays, and neither padding nor what a compiler keeps twice; docs/atlas.md holds
it against compiled programs. So it says what cannot fit, and where to begin to look for
what does.
"""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax import mesh
from rljax.model import DecoderConfig, decoder_policy
from rljax.plan import cost
from rljax.program import Program, Sizes
from tpu import chips, roofline

GIB = 2**30


class Stored(NamedTuple):
    """What a run keeps, over all chips.

    parameters: how many. parameter_bytes: of those. state_bytes: of all that is kept.
    """

    parameters: int
    parameter_bytes: int
    state_bytes: int


class Memory(NamedTuple):
    """Bytes of a chip.

    state: parameters, optimiser and what else the run keeps.
    caches, weights: while sampling, keys and values, and weights in the activations'
      format.
    gradients: while updating, one set of them for microbatches, and one of each
      backward pass, over prompts and over completions.
    head: its gradient, whole on each chip, in float32.
    ends: that and the embedding's, and both gathered; not while layers are computed.
    inputs: of all layers, kept for the backward pass.
    layer: what one layer computes again, and its gradients.
    logits: those that are held at once, and their gradients.
    """

    state: float
    caches: float
    weights: float
    gradients: float
    head: float
    ends: float
    inputs: float
    layer: float
    logits: float

    @property
    def peak(self) -> float:
        """The larger half of the step, beside the state."""
        sampling = self.caches + self.weights
        layers = self.head + self.inputs + self.layer
        updating = self.gradients + max(layers, self.ends + self.logits)
        return self.state + max(sampling, updating)


def of_program(program: Program) -> Stored:
    """What the run of a program keeps."""
    params = program.state.params
    return Stored(
        cost.num_elements(params), cost.num_bytes(params), cost.num_bytes(program.state)
    )


def of_shape(decoder: DecoderConfig) -> Stored:
    """What a run keeps of a decoder: AdamW, all in float32."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    count = cost.num_elements(jax.eval_shape(decoder_policy(decoder).init, key))
    return Stored(count, 4 * count, 12 * count)


def by_arithmetic(sizes: Sizes, axes: Mapping[str, int], stored: Stored) -> Memory:
    """The memory of a chip of a mesh with these axes."""
    c, num = sizes.decoder, roofline.num_chips(axes)
    itemsize = jnp.dtype(c.dtype).itemsize
    split = roofline.parts(axes, mesh.FSDP, mesh.EXPERT, mesh.TENSOR)
    rows = sizes.num_prompts * sizes.num_samples / sizes.num_pieces / num
    tokens = rows * sizes.max_tokens + sizes.prompt_tokens * rows / sizes.num_samples
    sampling = roofline.parts(axes, mesh.TENSOR)
    sets = 2 + (sizes.num_pieces > 1)
    logits = 4 * min(rows * sizes.max_tokens * c.vocab_size, cost.MAX_LOGITS)
    head = 0 if num == 1 else 4 * c.vocab_size * c.d_model
    layer = tokens * itemsize * _layer(c)
    inputs = tokens * itemsize * c.d_model if c.remat else layer / 2
    return Memory(
        state=stored.state_bytes / split,
        caches=sum(cost.cache_bytes(sizes)) / num,
        weights=stored.parameters * itemsize / sampling,
        gradients=sets * stored.parameter_bytes / split,
        head=head,
        ends=2 * head * (1 if c.tie_embeddings else 2),
        inputs=c.num_layers * inputs,
        layer=layer,
        logits=2 * logits,
    )


def _layer(c: DecoderConfig) -> float:
    """Numbers of a token that exist at once in the backward pass of a layer."""
    heads = c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    width = c.d_ff
    if c.experts is not None:
        width = c.experts.num_chosen * c.experts.d_ff + (c.experts.shared_d_ff or 0)
    return 4 * width + 4 * c.d_model + heads


def fitting(sizes: Sizes, stored: Stored, kind: str) -> Iterator[str]:
    """Slices of a kind of chip on which it fits, as far as arithmetic sees."""
    for topology in chips.known():
        place = chips.parse(topology)
        if place.kind == kind and _divides(sizes, place):
            axes = {mesh.FSDP: place.num_chips}
            needed = by_arithmetic(sizes, axes, stored)
            if needed.peak <= place.chip.hbm_gib * GIB:
                yield topology


def _divides(sizes: Sizes, place: chips.Slice) -> bool:
    return (
        math.gcd(sizes.num_prompts, place.num_chips * sizes.num_pieces)
        >= place.num_chips
    )


def refusal(
    sizes: Sizes, stored: Stored, place: chips.Slice, needed: float, how: str
) -> str:
    """That it does not fit on a slice, and what would.

    Args:
      needed: bytes of a chip.
      how: how that is known.
    """
    larger = [f for kind in ("v5e", "v6e", "v5p") for f in fitting(sizes, stored, kind)]
    larger = [f for f in larger if f != str(place)]
    advice = "--num-microbatches doubled, fewer --num-prompts, --num-samples or"
    advice += " --max-tokens, --num-slots, --mu-dtype bfloat16, --optimizer adafactor"
    where = f"one of {', '.join(larger)}" if larger else "no slice known here"
    much = "more" if math.isinf(needed) else f"{needed / GIB:,.1f} GiB"
    return (
        f"a chip must hold what it needs, {place.chip.hbm_gib:g} GiB on"
        f" {place}, but it needs {much} ({how}); by arithmetic"
        f" it fits with --mesh fsdp over {where}; or take {advice}."
    )
