"""Where a text ends: before the stop string that its last token completes.

    "42\\nQuest" + "ion: What"   with the stop string "\\nQuestion:"   ->  "42"

A completion that ended with a stop string is judged by the text before the string. All
others are left whole: completions that ended with an end token, completions that were
cut at T tokens, and stored answers with an end token.
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
    """i32[]: how many bytes of one text stand before the stop string that ends it.

    Args:
      ends: stop strings, at least one.
      longest: bytes of the longest token.
      byte_at: positions i32[W] in the text -> bytes u8[W]; arbitrary outside the text.
      last: i32[] bytes of the last token; 0 keeps the whole text.
      size: i32[] bytes of the text.
    """
    window = longest + max(map(len, ends))
    place = size - window + jnp.arange(window, dtype=jnp.int32)
    byte = byte_at(place)
    end, begin = size + 1, size
    # The stop string that is complete first counts; of several, the longest.
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
    """The text cut as `cut` does, on the host."""
    for stop in range(len(text) - last + 1, len(text) + 1):
        found = [end for end in ends if text[:stop].endswith(end)]
        if found:
            return text[: stop - max(map(len, found))]
    return text
