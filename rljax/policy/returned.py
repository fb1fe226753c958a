"""What samplers and measure functions return, checked right after the call.

An array that lacks an axis broadcasts: where G = T, log-probabilities [P, G] of whole
rows are taken for those of tokens, and the run trains on another objective. The checks
run when traced and cost nothing at run time. Those of transforms and losses are in
`advantage.seam`, those of verifiers in `verdict`.
"""

from typing import Any

import jax.numpy as jnp

from rljax import check
from rljax.types import Missing, Prompts, Samples, TokenStats, is_measured


def statistics(stats: Any, samples: Samples, who: str) -> TokenStats:
    """What a measure function returned of these samples.

    Args:
      who: whose measure function it is, for the message.

    Raises:
      ValueError: when traced, unless they are float32[P, G, T], extras begin with
        [P, G, T] and extras of rows with [P, G].
    """
    if not isinstance(stats, TokenStats):
        raise ValueError(
            f"{who} must return TokenStats, got {type(stats).__name__}; return"
            " TokenStats(logp=..., entropy=...)."
        )
    shape = samples.mask.shape
    _require(who, "logp", stats.logp, jnp.float32, shape)
    if is_measured(stats.entropy):
        _require(who, "entropy", stats.entropy, jnp.float32, shape)
    for name, array in stats.extra.items():
        _require_begins(who, f"extra[{name!r}]", array, shape)
    for name, array in stats.row_extra.items():
        _require_begins(who, f"row_extra[{name!r}]", array, shape[:2])
    return stats


def drawn(
    result: Any, prompts: Prompts, who: str = "the sampler"
) -> tuple[Samples, TokenStats | Missing]:
    """The (samples, `old`) that a sampler returned for these prompts.

    Raises:
      ValueError: when traced, unless they have the shapes and dtypes of their types.
    """
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"{who} must return (samples, old), got {check.described(result)}; return"
            " both, or Missing(...) for the second."
        )
    samples, old = result
    if not isinstance(samples, Samples):
        raise ValueError(
            f"{who} must return Samples, got {check.described(samples)}; return"
            " Samples(tokens=..., mask=..., source=..., finished=...)."
        )
    shape, num_prompts = getattr(samples.tokens, "shape", ()), len(prompts.tokens)
    if len(shape) != 3 or shape[0] != num_prompts:
        raise ValueError(
            f"{who} must return tokens [P, G, T] of the P = {num_prompts} prompts, got"
            f" {check.described(samples.tokens)}; keep all axes."
        )
    for name, dtype, wanted in (
        ("tokens", jnp.integer, shape),
        ("mask", jnp.bool_, shape),
        ("source", jnp.integer, shape[:2]),
        ("finished", jnp.bool_, shape[:2]),
    ):
        _require(who, name, getattr(samples, name), dtype, wanted)
    if is_measured(samples.decode_steps):
        _require(who, "decode_steps", samples.decode_steps, jnp.float32, shape[:2])
    if is_measured(samples.behaviour):
        statistics(samples.behaviour, samples, f"{who}, of its behaviour,")
    if is_measured(old):
        statistics(old, samples, f"{who}, of `old`,")
    return samples, old


def _require(who: str, name: str, x: Any, dtype: Any, shape: tuple[int, ...]) -> None:
    if getattr(x, "shape", None) == shape and jnp.issubdtype(x.dtype, dtype):
        return
    raise ValueError(
        f"{who} must return {name} {dtype.__name__.strip('_')}{_letters(shape)}, got"
        f" {check.described(x)}; keep all axes and cast it."
    )


def _require_begins(who: str, name: str, x: Any, shape: tuple[int, ...]) -> None:
    if getattr(x, "shape", ())[: len(shape)] != shape:
        rows = ", or put what has no token axis into `row_extra`" * (len(shape) == 3)
        raise ValueError(
            f"{who} must return {name} that begins with {_letters(shape)}, got"
            f" {check.described(x)}; keep all axes{rows}."
        )


def _letters(shape: tuple[int, ...]) -> str:
    return f"[{', '.join('PGT'[: len(shape)])}] = {list(shape)}"
