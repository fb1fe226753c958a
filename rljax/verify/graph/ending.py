"""Where a text ends: before the stop string that its last token completes.

    "42\\nQuest" + "ion: What"   with the stop string "\\nQuestion:"   ->  "42"

A completion that ended so is judged by what stands before. All others are whole: those
that ended with a token, were cut, or are stored answers with an end token.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def cut(
    ends: Sequence[bytes],
    longest: int,
    byte_at: Callable[[jax.Array], jax.Array],
    last: jax.Array,
    size: jax.Array,
) -> jax.Array:
    """i32[]: the bytes of one text that are left.

    Args:
      ends: stop strings, at least one.
      longest: bytes that a token can have.
      byte_at: places i32[W] in the text -> bytes u8[W]; anything outside of it.
      last: i32[] bytes of the last token; 0 keeps the whole text.
      size: i32[] bytes of the text.
    """
    window = longest + max(map(len, ends))
    place = size - window + jnp.arange(window, dtype=jnp.int32)
    byte = byte_at(place)
    end, begin = size + 1, size
    # The one that is complete first; of several, the one that began first.
    for text in sorted(ends, key=len):
        match = place[: window - len(text) + 1] >= 0
        for offset, wanted in enumerate(text):
            match &= byte[offset : offset + match.size] == wanted
        stop = place[: match.size] + len(text)
        match &= stop > size - last
        first = jnp.min(jnp.where(match, stop, size + 1))
        sooner = (first <= end) & (first <= size)
        begin = jnp.where(sooner, first - len(text), begin)
        end = jnp.where(sooner, first, end)
    return begin


def cut_host(ends: Sequence[bytes], text: bytes, last: int) -> bytes:
    """Twin of `cut` on the host."""
    for stop in range(len(text) - last + 1, len(text) + 1):
        found = [end for end in ends if text[:stop].endswith(end)]
        if found:
            return text[: stop - max(map(len, found))]
    return text
