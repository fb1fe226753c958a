"""Estimates the time of a training step by phase, from the peak rates of a chip.

The time of prefill and update follows from FLOPs. Decoding must read all weights, in
the activations' format, and the keys so far, once per token. The time of collectives
follows from their number and the bytes that a chip receives. No overlap and no waiting
is assumed. `EXPECTED` has the fractions of peak rates that programs elsewhere are known
to reach; they were not measured here.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from rljax import mesh
from rljax.model import DecoderConfig
from rljax.plan import cost
from rljax.plan.hlo import Collective
from rljax.program import Sizes
from tpu.chips import Chip

PHASES = ("sample", "prefill", "decode", "verify", "credit", "update")


class Shares(NamedTuple):
    """Fractions of a chip's peak rates that a program reaches.

    latency: seconds that a collective takes beside the time of its bytes.
    """

    flops: float = 1.0
    memory: float = 1.0
    links: float = 1.0
    latency: float = 0.0


EXPECTED = Shares(flops=0.4, memory=0.7, links=0.7, latency=1e-5)


class Moved(NamedTuple):
    """The collectives of a phase.

    bytes: that a chip receives.
    times: number of collectives.
    """

    bytes: float
    times: float


class Work(NamedTuple):
    """The work of one chip in a training step.

    prefill_flops, decode_flops, update_flops: of matrix products; the update includes
      recomputation in the backward pass.
    decode_bytes: read while decoding.
    moved: phase -> its collectives.
    """

    prefill_flops: float
    decode_flops: float
    update_flops: float
    decode_bytes: float
    moved: Mapping[str, Moved]


class Estimate(NamedTuple):
    """Phase -> seconds of a training step, and sampled tokens per second."""

    seconds: dict[str, float]
    tokens_per_second: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


def work(
    sizes: Sizes,
    num_parameters: int,
    axes: Mapping[str, int],
    moved: Mapping[str, Moved],
) -> Work:
    """The work of a chip, if prompts divide evenly.

    Args:
      sizes: of the step.
      num_parameters: of the decoder.
      axes: mesh axis -> devices along it.
      moved: of `received` or `tpu.links`, per training step.
    """
    chips = num_chips(axes)
    flops = cost.decoder_flops(sizes)
    # With remat the backward pass runs the forward pass once more.
    again = 4 / 3 if sizes.decoder.remat else 1.0
    itemsize = jnp.dtype(sizes.decoder.dtype).itemsize
    weights = itemsize * sampled_parameters(sizes.decoder, num_parameters, axes)
    return Work(
        prefill_flops=flops.prompts / chips,
        decode_flops=flops.sampling / chips,
        update_flops=again * flops.training / chips,
        decode_bytes=sizes.num_rounds
        * (sizes.max_tokens - 1)
        * (weights + mean_cache(sizes) / chips),
        moved=moved,
    )


def sampled_parameters(
    decoder: DecoderConfig, num_parameters: int, axes: Mapping[str, int]
) -> float:
    """Parameters on a chip while it samples; all of them are read for each token.

    They are split over `tensor`, and those of experts over `expert`, too.
    """
    experts, of_experts = decoder.experts, 0
    if experts is not None:
        matrices = 3 * decoder.d_model * experts.d_ff
        of_experts = decoder.num_layers * experts.num * matrices
    rest = num_parameters - of_experts
    whole = rest + of_experts / parts(axes, mesh.EXPERT)
    return whole / parts(axes, mesh.TENSOR)


def mean_cache(sizes: Sizes) -> float:
    """Mean bytes of keys and values that one decode step of all rows reads."""
    prompts, own = cost.cache_bytes(sizes)
    return prompts + own / 2


def parts(axes: Mapping[str, int], *names: str) -> int:
    """The product of the sizes of some mesh axes."""
    return math.prod(axes.get(name, 1) for name in names)


def num_chips(axes: Mapping[str, int]) -> int:
    """Number of devices of the mesh."""
    return parts(axes, *axes)


def received(
    collectives: Iterable[Collective], chips: int, steps: int
) -> dict[str, Moved]:
    """Phase -> its collectives in a training step.

    Assumes a ring: in an all-reduce a chip receives the size of the result twice; in a
    reduce-scatter, once for each other chip. (All chips of the mesh are counted, so
    this is an upper bound.)

    Args:
      collectives: of a program.
      chips: number of chips of the mesh.
      steps: training steps of the program.
    """
    found: dict[str, Moved] = {}
    for one in collectives:
        each = {"all-reduce": 2, "reduce-scatter": chips - 1}.get(one.kind, 1)
        phase, times = phase_of(one.op_name), one.times / steps
        before = found.get(phase, Moved(0.0, 0.0))
        size = before.bytes + each * one.bytes * times
        found[phase] = Moved(size, before.times + times)
    return found


def phase_of(op_name: str) -> str:
    """The innermost phase in an operation's scopes, or "other"."""
    scopes = re.split(r"[/()]", op_name)
    return next((scope for scope in reversed(scopes) if scope in PHASES), "other")


def estimate(done: Work, sizes: Sizes, chip: Chip, shares: Shares) -> Estimate:
    """The time of a training step on chips that reach `shares` of their peak rates."""
    flops = 1e12 * chip.tflops * shares.flops
    memory = 1e9 * chip.hbm_gb_per_s * shares.memory
    links = 1e9 * chip.link_gb_per_s * shares.links
    seconds = {
        "prefill": done.prefill_flops / flops,
        "decode": max(done.decode_bytes / memory, done.decode_flops / flops),
        "update": done.update_flops / flops,
    }
    for phase, moved in done.moved.items():
        time = moved.bytes / links + moved.times * shares.latency
        seconds[f"collectives: {phase}"] = time
    tokens = sizes.num_prompts * sizes.num_samples * sizes.max_tokens
    return Estimate(seconds, tokens / sum(seconds.values()))
