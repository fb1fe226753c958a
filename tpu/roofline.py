"""How long a training step takes at best, by phase, from a table of chips.

Prompts and updates by arithmetic, decoding by what it must read: all weights in the
activations' format and the keys so far, once per token; collectives by what a chip
receives. Nothing overlaps, nothing waits. `EXPECTED` says what share of the peaks
programs reach that are known from elsewhere; none of it was measured here.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from rljax import mesh
from rljax.plan import cost
from rljax.plan.hlo import Collective
from rljax.program import Sizes
from tpu.chips import Chip

PHASES = ("sample", "prefill", "decode", "verify", "credit", "update")


class Shares(NamedTuple):
    """Shares of a chip's peaks that a program reaches."""

    flops: float = 1.0
    memory: float = 1.0
    links: float = 1.0


EXPECTED = Shares(flops=0.4, memory=0.7, links=0.7)


class Work(NamedTuple):
    """What one chip does in a training step.

    prefill_flops, decode_flops, update_flops: of matrix products; the update's with
      what is computed again backward.
    decode_bytes: read while decoding.
    link_bytes: received in collectives, by phase; none if nothing was compiled.
    """

    prefill_flops: float
    decode_flops: float
    update_flops: float
    decode_bytes: float
    link_bytes: Mapping[str, float]


class Estimate(NamedTuple):
    """Seconds of a training step, by phase, and sampled tokens per second."""

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
    link_bytes: Mapping[str, float],
) -> Work:
    """The work of a chip, where prompts divide evenly.

    Args:
      num_parameters: of the decoder.
      axes: devices along the axes of the mesh.
      link_bytes: as `received` says of a training step.
    """
    chips = num_chips(axes)
    flops = cost.decoder_flops(sizes)
    # Forward once more, for what the backward pass computes again.
    again = 4 / 3 if sizes.decoder.remat else 1.0
    itemsize = jnp.dtype(sizes.decoder.dtype).itemsize
    # Sampling splits weights over `tensor` alone.
    weights = itemsize * num_parameters / parts(axes, mesh.TENSOR)
    return Work(
        prefill_flops=flops.prompts / chips,
        decode_flops=flops.sampling / chips,
        update_flops=again * flops.training / chips,
        decode_bytes=sizes.num_rounds
        * (sizes.max_tokens - 1)
        * (weights + mean_cache(sizes) / chips),
        link_bytes=link_bytes,
    )


def mean_cache(sizes: Sizes) -> float:
    """Bytes of keys and values that a token of all rows reads, on average."""
    prompts, own = cost.cache_bytes(sizes)
    return prompts + own / 2


def parts(axes: Mapping[str, int], *names: str) -> int:
    """Into how many parts these axes of the mesh split something."""
    found = 1
    for name in names:
        found *= axes.get(name, 1)
    return found


def num_chips(axes: Mapping[str, int]) -> int:
    """Devices of the mesh."""
    return parts(axes, *axes)


def received(collectives: Iterable[Collective], chips: int) -> dict[str, float]:
    """Bytes that a chip receives in collectives, by phase.

    A ring is assumed: an all-reduce brings its result twice, a reduce-scatter its
    result once for each other chip (of the whole mesh, so this is at most).
    """
    found: dict[str, float] = {}
    for one in collectives:
        each = {"all-reduce": 2, "reduce-scatter": chips - 1}.get(one.kind, 1)
        phase = phase_of(one.op_name)
        found[phase] = found.get(phase, 0.0) + float(each) * one.bytes * one.times
    return found


def phase_of(op_name: str) -> str:
    """The innermost phase whose scope an operation is in; "other" for none."""
    scopes = re.split(r"[/()]", op_name)
    return next((scope for scope in reversed(scopes) if scope in PHASES), "other")


def estimate(done: Work, sizes: Sizes, chip: Chip, shares: Shares) -> Estimate:
    """The time of a training step on chips that reach these shares of their peaks."""
    flops = 1e12 * chip.tflops * shares.flops
    memory = 1e9 * chip.hbm_gb_per_s * shares.memory
    links = 1e9 * chip.link_gb_per_s * shares.links
    seconds = {
        "prefill": done.prefill_flops / flops,
        "decode": max(done.decode_bytes / memory, done.decode_flops / flops),
        "update": done.update_flops / flops,
    }
    for phase, size in done.link_bytes.items():
        seconds[f"collectives: {phase}"] = size / links
    tokens = sizes.num_prompts * sizes.num_samples * sizes.max_tokens
    return Estimate(seconds, tokens / sum(seconds.values()))
