"""Completions as text: decoding inside the graph, and verifiers that read text.

Symbols: `P` prompts, `G` samples per prompt, `T` completion tokens, `N` bytes of text,
`A` bytes of an answer. A text consists of zero-padded bytes and a length. The bytes
need not be UTF-8; each verifier interprets them itself.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check
from rljax.types import Prompts, Samples, Verdict, Verify, require
from rljax.verify.graph import ending
from rljax.verify.graph.vocabulary import TokenBytes

WHITESPACE = b" \t\n\r\v\f"
GAP = b"\xff"  # occurs nowhere in UTF-8


class Text(NamedTuple):
    """Byte strings of different lengths in one array.

    bytes: u8[..., N], zero from `length` on.
    length: i32[...] bytes of the whole text; above N if it was cut.
    """

    bytes: jax.Array
    length: jax.Array

    @property
    def fits(self) -> jax.Array:
        """bool[...]: nothing was cut off."""
        return self.length <= self.bytes.shape[-1]


def decode(
    table: TokenBytes,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    max_bytes: int | None = None,
    gap: bytes = b"",
) -> Text:
    """The text of the tokens under the mask, up to a stop string of `table.ends`.

    Args:
      table: the bytes of each token; a constant of the program.
      tokens: i32[..., T].
      mask: bool[..., T].
      max_bytes: N, a static bound; longer texts are cut. None is T * table.longest,
        which always fits. If a few tokens of the vocabulary are very long, that is
        wasteful: real text needs 4 to 8 bytes per token.
      gap: a byte to insert where tokens without text lie between two tokens with text;
        by default none. Special tokens, ids outside the table and tokens outside the
        mask have no text. The verifiers here pass `GAP`: without it the tokens 1,
        <special>, 8 would read 18.

    Returns:
      Text of shape [...]. `length` is that of the whole text, even if it was cut.

    Raises:
      ValueError: if shapes disagree, `max_bytes` is not positive, or `gap` is longer
        than one byte.
    """
    _require_gap(gap)
    size = _num_bytes(table, tokens, mask, max_bytes)
    # In `flat` a gap precedes every piece, so it is the byte before the piece's first.
    apart = b"".join(gap + piece for piece in table.pieces) if gap else None
    flat = table.flat if apart is None else np.frombuffer(apart or b"\0", np.uint8)
    start = table.start + len(gap) * np.arange(1, table.start.size + 1, dtype=np.int32)
    flat, start, length = map(jnp.asarray, (flat, start, table.length))

    def row(tokens, mask):
        known = mask & (tokens >= 0) & (tokens < length.size)
        index = jnp.where(known, tokens, 0)
        count = jnp.where(known, length[index], 0)
        joint = _after_gap(count > 0).astype(jnp.int32) * len(gap)
        count += joint
        end = jnp.cumsum(count, dtype=jnp.int32)
        # Byte n belongs to the token whose index is the number of tokens that end at or
        # before n: the cumulative histogram of ends. It is 2 to 7 times faster than a
        # binary search per byte. Ends at N or beyond are dropped.
        place = jnp.arange(size, dtype=jnp.int32)
        ends = jnp.zeros(size, jnp.int32).at[end].add(1, mode="drop")
        token = jnp.minimum(jnp.cumsum(ends, dtype=jnp.int32), tokens.size - 1)
        from_flat = start[index] - (end - count) - joint
        byte = flat[jnp.clip(from_flat[token] + place, 0, flat.size - 1)]
        length_left = end[-1]
        if table.ends:

            def byte_at(places):
                token = jnp.searchsorted(end, places, side="right")
                token = jnp.minimum(token, tokens.size - 1)
                return flat[jnp.clip(from_flat[token] + places, 0, flat.size - 1)]

            last = jnp.max(jnp.where(mask, jnp.arange(tokens.size), 0))
            last = (count - joint)[last]
            length_left = ending.cut(table.ends, table.longest, byte_at, last, end[-1])
        return jnp.where(place < length_left, byte, 0).astype(jnp.uint8), length_left

    return Text(*jnp.vectorize(row, signature="(t),(t)->(n),()")(tokens, mask))


def _num_bytes(table: TokenBytes, tokens, mask, max_bytes: int | None) -> int:
    if tokens.shape != mask.shape:
        raise ValueError(
            "decode needs tokens and mask of one shape [..., T], got tokens"
            f" {tokens.shape} and mask {mask.shape}."
        )
    size = tokens.shape[-1] * table.longest if max_bytes is None else max_bytes
    if size < 1:
        raise ValueError(
            "decode needs at least one token and max_bytes >= 1, got tokens"
            f" {tokens.shape} and max_bytes {max_bytes}."
        )
    return size


def decode_host(table: TokenBytes, tokens, mask, *, gap: bytes = b"") -> list[bytes]:
    """The same as `decode` on the host: a byte string per row of [..., T], in order."""
    _require_gap(gap)
    tokens, mask = np.asarray(tokens), np.asarray(mask)
    size = len(table.pieces)

    def row(tokens, mask):
        text, whole, last = b"", True, 0
        for token, kept in zip(tokens.tolist(), mask.tolist(), strict=True):
            piece = table.pieces[token] if kept and 0 <= token < size else b""
            text += gap + piece if piece and text and not whole else piece
            whole = bool(piece)
            last = len(piece) if kept else last
        return ending.cut_host(table.ends, text, last)

    rows = zip(
        tokens.reshape(-1, tokens.shape[-1]),
        mask.reshape(-1, mask.shape[-1]),
        strict=True,
    )
    return [row(*pair) for pair in rows]


def _after_gap(texts: jax.Array) -> jax.Array:
    """bool[T]: tokens with text that need a gap before them.

    The token before has no text, and an earlier one has.
    """
    index = jnp.arange(texts.size, dtype=jnp.int32)
    previous = jnp.roll(texts, 1)
    return texts & ~previous & (index > jnp.argmax(texts))


def _require_gap(gap: bytes) -> None:
    check.raw_bytes("decode's gap", gap)
    if len(gap) > 1:
        raise ValueError(
            f"decode's gap must be at most one byte, got {gap!r}; pass b'\\xff'."
        )


def answers(prompts: Prompts) -> Text:
    """The reference answers: Text of shape [P]; each ends at its first 0 byte.

    Raises:
      ValueError: unless `prompts.data["answer"]` is u8[P, A] with A >= 1.
    """
    data = jnp.asarray(_answer_data(prompts))
    inside = jnp.cumprod((data != 0).astype(jnp.int32), axis=-1)
    length = jnp.sum(inside, axis=-1, dtype=jnp.int32)
    return Text(jnp.where(inside == 1, data, 0).astype(jnp.uint8), length)


def answers_host(prompts: Prompts) -> list[bytes]:
    """The same as `answers` on the host: a byte string per prompt."""
    rows = np.asarray(_answer_data(prompts))
    return [row.tobytes().split(b"\0", 1)[0] for row in rows]


def _answer_data(prompts: Prompts):
    how = "add the reference answers by data.answer_bytes, or take another verifier"
    data = require(prompts.data, "answer", how)
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] < 1:
        raise ValueError(
            'prompts.data["answer"] must be u8[P, A], zero-padded UTF-8 bytes, got'
            f" {data.dtype} of shape {data.shape}."
        )
    return data


JudgeFn = Callable[[Text, Text, jax.Array], jax.Array]
"""(text of one completion, answer, finished bool[]) -> correct bool[]."""


def text_verifier(
    table: TokenBytes, judge: JudgeFn, *, max_bytes: int | None = None
) -> Verify:
    """The in-graph verifier that judges one sample at a time.

    Args:
      table: the bytes of each token.
      judge: (text of the completion u8[N], answer u8[A], finished bool[]) -> bool[],
        for one sample; it is mapped over [P, G]. In the text, `GAP` marks where tokens
        without text lay between two with text.
      max_bytes: N, see `decode`. A completion of more bytes is wrong.

    Returns:
      (prompts, samples) -> Verdict with reward 1 or 0; reads `prompts.data["answer"]`.

    Raises:
      ValueError: if `table` is not TokenBytes or `max_bytes` is not positive.
    """
    require_table(table, max_bytes)
    check.function("judge", judge, "text, answer, finished")

    def verify(prompts: Prompts, samples: Samples) -> Verdict:
        text = decode(table, samples.tokens, samples.mask, max_bytes=max_bytes, gap=GAP)
        by_sample = jax.vmap(judge, in_axes=(0, None, 0))
        correct = jax.vmap(by_sample)(text, answers(prompts), samples.finished)
        return Verdict.binary(correct & text.fits)

    return verify


def require_table(table: TokenBytes, max_bytes: int | None) -> None:
    """Raises ValueError unless `table` and `max_bytes` are valid for a verifier."""
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)


def find(text: Text, needle: bytes) -> jax.Array:
    """i32[]: position of the first `needle` in one text u8[N]; -1 if there is none.

    Raises:
      ValueError: if `needle` is not `bytes`, is empty, or has more than N bytes.
    """
    match = _matches(text, needle)
    return jnp.where(jnp.any(match), jnp.argmax(match).astype(jnp.int32), -1)


def find_last(text: Text, needle: bytes) -> jax.Array:
    """i32[]: position of the last `needle`; otherwise as `find`."""
    match = _matches(text, needle)
    index = jnp.arange(match.size, dtype=jnp.int32)
    return jnp.max(jnp.where(match, index, -1))


def _matches(text: Text, needle: bytes) -> jax.Array:
    """bool[N - len(needle) + 1]: whether `needle` begins at each position."""
    check.raw_bytes("the text to look for", needle)
    size, room = len(needle), text.bytes.shape[-1]
    if not 1 <= size <= room:
        raise ValueError(
            f"the text to look for must have 1 to {room} bytes, the most a completion"
            f" can have here, got {needle!r}; allow more tokens or a larger max_bytes."
        )
    starts = jnp.arange(room - size + 1, dtype=jnp.int32)
    match = starts + size <= text.length
    for offset, byte in enumerate(needle):
        match &= text.bytes[offset : offset + starts.size] == byte
    return match
