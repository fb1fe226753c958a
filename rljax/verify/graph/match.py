"""Verifiers that compare text: whole texts, or whether a text contains another."""

import jax
import jax.numpy as jnp

from rljax import check
from rljax.types import Prompts, Samples, Verdict, Verify
from rljax.verify.graph import text as texts
from rljax.verify.graph.text import Text
from rljax.verify.graph.vocabulary import TokenBytes


def exact(
    table: TokenBytes,
    *,
    strip: bytes = texts.WHITESPACE,
    max_bytes: int | None = None,
) -> Verify:
    """Reward 1 if the completion's text is the answer, byte for byte.

    Args:
      table: the bytes of each token.
      strip: bytes ignored at both ends of completion and answer; `b""` for none.
      max_bytes: see `text.text_verifier`; a longer completion is wrong.

    Returns:
      (prompts, samples) -> Verdict. Reads `prompts.data["answer"]`. An unfinished
      sample is wrong, as its text was cut.

    Raises:
      ValueError: if `strip` is not `bytes`.
    """
    check.raw_bytes("strip", strip)

    def judge(text, answer, finished):
        text_first, text_size = _core(text, strip)
        first, size = _core(answer, strip)
        place = jnp.arange(answer.bytes.size, dtype=jnp.int32)
        said = text.bytes[jnp.minimum(text_first + place, text.bytes.size - 1)]
        want = answer.bytes[jnp.minimum(first + place, place.size - 1)]
        same = jnp.all((said == want) | (place >= size))
        return finished & same & (text_size == size)

    return texts.text_verifier(table, judge, max_bytes=max_bytes)


def contains(
    table: TokenBytes, needle: bytes, *, max_bytes: int | None = None
) -> Verify:
    """Reward 1 if `needle` occurs in the completion's text, finished or not.

    Args:
      table: the bytes of each token.
      needle: the text to look for, at least one byte.
      max_bytes: see `text.text_verifier`; a longer completion is wrong.

    Returns:
      (prompts, samples) -> Verdict; the prompts are not read.

    Raises:
      ValueError: if `needle` is empty or not `bytes`; when traced, if no completion is
        long enough for it.
    """
    texts.require_table(table, max_bytes)
    check.raw_bytes("needle", needle)
    if not needle:
        raise ValueError(
            "needle must have at least one byte, got b''; pass what to look for."
        )

    def verify(prompts: Prompts, samples: Samples) -> Verdict:
        del prompts
        text = texts.decode(
            table, samples.tokens, samples.mask, max_bytes=max_bytes, gap=texts.GAP
        )
        found = jax.vmap(jax.vmap(lambda one: texts.find(one, needle)))(text)
        return Verdict.binary((found >= 0) & text.fits)

    return verify


def _core(text: Text, strip: bytes):
    """(position, size) of the text without the stripped bytes at both ends."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    ink = index < text.length
    for byte in strip:
        ink &= text.bytes != byte
    first = jnp.min(jnp.where(ink, index, text.bytes.size))
    last = jnp.max(jnp.where(ink, index, -1))
    return first, jnp.maximum(last - first + 1, 0)
