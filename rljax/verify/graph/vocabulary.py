"""The bytes that each token stands for, derived from the tokenizer's decoder.

Symbols: `V` vocabulary, `M` bytes of all tokens together.

Verifiers read bytes, not strings, because a token may hold half a character and a
compiled program can compare bytes. `transformers` is not imported here; the tokenizer
provides its own description (the contents of its tokenizer.json).
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from rljax import check


@dataclasses.dataclass(frozen=True)
class TokenBytes:
    """The bytes that every token id adds to the text.

    pieces: the bytes of token 0, 1, ..., V-1; empty for tokens without text (end,
      padding). An id outside 0..V-1 adds nothing, as models often have more embedding
      rows than their tokenizer has tokens.
    ends: stop strings. If a text's last token completes one, the text ends before the
      stop string; see `ending`.

    The arrays hold the pieces end to end. A table [V, longest] would be 20 times as
    large for a vocabulary of 150 000 with one token of 128 spaces.

    Raises:
      ValueError: if a piece or an end is not `bytes`, or an end is empty.
    """

    pieces: tuple[bytes, ...]
    ends: tuple[bytes, ...] = ()

    def __post_init__(self):
        for token, piece in enumerate(self.pieces):
            check.raw_bytes(f"the piece of token {token}", piece)
        for end in self.ends:
            check.raw_bytes("an end", end)
            if not end:
                raise ValueError(
                    "an end must hold at least one byte, got b''; leave it out."
                )

    @functools.cached_property
    def flat(self) -> np.ndarray:
        """u8[M] all pieces end to end; M is at least 1."""
        return np.frombuffer(b"".join(self.pieces) or b"\0", np.uint8)

    @functools.cached_property
    def length(self) -> np.ndarray:
        """i32[V] bytes of each piece."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    @functools.cached_property
    def start(self) -> np.ndarray:
        """i32[V] where each piece begins in `flat`."""
        return np.cumsum(self.length, dtype=np.int32) - self.length

    @functools.cached_property
    def longest(self) -> int:
        """Bytes of the longest piece, at least 1."""
        return max(1, int(self.length.max(initial=0)))


def token_bytes(tokenizer: Any) -> TokenBytes:
    """The bytes of each token of a fast Hugging Face tokenizer.

    It supports decoders that convert each token to bytes independently of its context:
    - byte-level BPE (GPT-2's alphabet: Qwen, Llama 3, GPT-2);
    - sentencepiece-like ones: U+2581 for a space, `<0xNN>` for a byte (Llama 2, Gemma);
    - `Fuse`, and no decoder at all if every token is one character: the token's text.

    Tokens that the tokenizer calls special (end, padding, unknown and others) have no
    bytes. A space that the decoder strips from the start of a text is kept, because a
    completion continues its prompt.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.

    Raises:
      ValueError: if the tokenizer is not a fast one, or its decoder is not in the list
        above.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            "token_bytes needs a fast tokenizer (PreTrainedTokenizerFast), got"
            f" {type(tokenizer).__name__}; load it with AutoTokenizer or convert it."
        )
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    special = set(tokenizer.all_special_ids)
    special |= {t["id"] for t in description["added_tokens"] if t["special"]}
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True)
    text = {i: token for token, i in vocabulary.items() if i not in special}
    steps = _steps(description["decoder"], text.values())
    pieces = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for i, token in text.items():
        pieces[i] = _apply(steps, token)
    return TokenBytes(tuple(pieces))


Step = Callable[[str], str | bytes]
"""One step of a decoder: a token -> the changed token, or its final bytes."""


def _steps(decoder: dict | None, tokens) -> list[Step]:
    if decoder is None:
        long = next((token for token in tokens if len(token) != 1), None)
        if long is not None:
            raise ValueError(
                "token_bytes: a tokenizer without decoder joins tokens by spaces, which"
                " is supported only if all tokens are single characters, got"
                f" {long!r}; set backend_tokenizer.decoder, e.g. to decoders.Fuse()."
            )
        return []
    parts = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [part["type"] for part in parts]
    cut = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    # Steps before Fuse see single tokens, steps after it the whole text. Of the latter
    # only stripping the start leaves the bytes of later tokens unchanged.
    for part in parts[cut + 1 :]:
        if (part["type"], part.get("content"), part.get("stop")) != ("Strip", " ", 0):
            raise _unsupported(part)
    return [_step(part) for part in parts[:cut]]


def _step(part: dict) -> Step:
    match part:
        case {"type": "ByteLevel"}:
            return _byte_level
        case {"type": "ByteFallback"}:
            return _byte_fallback
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return lambda token: token.replace(old, new)
        case {"type": "Metaspace", "replacement": mark}:
            return lambda token: token.replace(mark, " ")
    raise _unsupported(part)


def _unsupported(part: dict) -> ValueError:
    return ValueError(
        "token_bytes supports the decoders ByteLevel, ByteFallback, Metaspace, Replace"
        f" of a string, Fuse, and Strip of spaces at the start after Fuse; got {part}."
        " Build TokenBytes(pieces) by hand for this tokenizer."
    )


def _apply(steps: list[Step], token: str) -> bytes:
    for step in steps:
        done = step(token)
        if isinstance(done, bytes):  # raw bytes are final
            return done
        token = done
    return token.encode()


def _byte_fallback(token: str) -> str | bytes:
    match = re.fullmatch("<0x([0-9A-Fa-f]{2})>", token)
    return bytes.fromhex(match[1]) if match else token


def _byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    if all(char in alphabet for char in token):
        return bytes(alphabet[char] for char in token)
    return token.encode()  # an added token, written as it is


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """Character -> byte in GPT-2's alphabet.

    Printable bytes are themselves, the others are characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    named = {chr(byte): byte for byte in printable}
    return named | {chr(0x100 + i): byte for i, byte in enumerate(rest)}
