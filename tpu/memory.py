"""Estimates the memory of a training step on a chip, by arithmetic, without compiling.

It counts arrays, but neither padding nor copies that the compiler makes; docs/atlas.md
compares it with compiled programs. So it can tell what does not fit, and is a starting
point in the search for what does.
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
    """The state of a run, over all chips.

    parameters: number of parameters.
    parameter_bytes: bytes of the parameters.
    state_bytes: bytes of the whole state, with parameters and optimiser.
    """

    parameters: int
    parameter_bytes: int
    state_bytes: int


class Memory(NamedTuple):
    """Bytes on a chip. Sampling and update are never in memory at the same time.

    state: the whole state.
    caches: in sampling, keys and values.
    weights: in sampling, weights in the activations' format.
    gradients: in the update, a set for prompts, a set for completions, and, with
      several microbatches, their sum.
    head: the gradient of the output head in float32, whole on each chip.
    ends: the gradients of head and embedding, and both of them gathered; not while
      layers are computed.
    inputs: of all layers, kept for the backward pass.
    layer: activations that one layer recomputes, and their gradients.
    logits: those held at once, and their gradients.
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
        """The state, and the larger of sampling and update."""
        sampling = self.caches + self.weights
        layers = self.head + self.inputs + self.layer
        updating = self.gradients + max(layers, self.ends + self.logits)
        return self.state + max(sampling, updating)


def of_program(program: Program) -> Stored:
    """The state of a program."""
    params = program.state.params
    return Stored(
        cost.num_elements(params), cost.num_bytes(params), cost.num_bytes(program.state)
    )


def of_shape(decoder: DecoderConfig) -> Stored:
    """The state of a decoder with AdamW, all in float32."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    count = cost.num_elements(jax.eval_shape(decoder_policy(decoder).init, key))
    return Stored(count, 4 * count, 12 * count)


def by_arithmetic(sizes: Sizes, axes: Mapping[str, int], stored: Stored) -> Memory:
    """The memory on one chip.

    Args:
      sizes: of the step.
      axes: mesh axis -> devices along it.
      stored: the state.
    """
    c, num = sizes.decoder, roofline.num_chips(axes)
    itemsize = jnp.dtype(c.dtype).itemsize
    split = roofline.parts(axes, mesh.FSDP, mesh.EXPERT, mesh.TENSOR)
    prompts = sizes.num_prompts / sizes.num_prompt_pieces / num  # in one piece
    rows = prompts * sizes.num_samples / sizes.num_group_parts
    tokens = rows * sizes.max_tokens + prompts * sizes.prompt_tokens
    sampled = roofline.sampled_parameters(c, stored.parameters, axes)
    sets = 2 + (sizes.num_pieces > 1)
    logits = 4 * min(rows * sizes.max_tokens * c.vocab_size, cost.MAX_LOGITS)
    head = 0 if num == 1 else 4 * c.vocab_size * c.d_model
    layer = tokens * itemsize * _layer(c)
    inputs = tokens * itemsize * c.d_model if c.remat else layer / 2
    return Memory(
        state=stored.state_bytes / split,
        caches=sum(cost.cache_bytes(sizes)) / num,
        weights=sampled * itemsize,
        gradients=sets * stored.parameter_bytes / split,
        head=head,
        ends=2 * head * (1 if c.tie_embeddings else 2),
        inputs=c.num_layers * inputs,
        layer=layer,
        logits=2 * logits,
    )


def _layer(c: DecoderConfig) -> float:
    """Numbers per token that exist at once in the backward pass of a layer."""
    heads = c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    width = c.d_ff
    if c.experts is not None:
        width = c.experts.num_chosen * c.experts.d_ff + (c.experts.shared_d_ff or 0)
    return 4 * width + 4 * c.d_model + heads


def fitting(sizes: Sizes, stored: Stored, kind: str) -> Iterator[str]:
    """Slices of a kind of chip on which a step fits with FSDP, by arithmetic."""
    for topology in chips.known():
        place = chips.parse(topology)
        if place.kind == kind and _divides(sizes, place):
            axes = {mesh.FSDP: place.num_chips}
            needed = by_arithmetic(sizes, axes, stored)
            if needed.peak <= place.chip.hbm_gib * GIB:
                yield topology


def _divides(sizes: Sizes, place: chips.Slice) -> bool:
    return sizes.num_prompts % (place.num_chips * sizes.num_prompt_pieces) == 0


def refusal(
    sizes: Sizes, stored: Stored, place: chips.Slice, needed: float, how: str
) -> str:
    """The message of a step that does not fit on a slice, with changes that help.

    Args:
      sizes: of the step.
      stored: the state.
      place: the slice.
      needed: bytes per chip; infinite if not known.
      how: how that is known.
    """
    larger = [f for kind in ("v5e", "v6e", "v5p") for f in fitting(sizes, stored, kind)]
    larger = [f for f in larger if f != str(place)]
    advice = "--num-microbatches or --num-group-parts doubled, fewer --num-prompts,"
    advice += " --num-samples or --max-tokens, --num-slots, --mu-dtype bfloat16,"
    advice += " --optimizer adafactor"
    where = f"one of {', '.join(larger)}" if larger else "no slice known here"
    much = "more" if math.isinf(needed) else f"{needed / GIB:,.1f} GiB"
    return (
        f"the step must fit in the memory of a chip, {place.chip.hbm_gib:g} GiB on"
        f" {place}, but it needs {much} ({how}); by arithmetic"
        f" it fits with --mesh fsdp over {where}; or take {advice}."
    )
