r"""Stop strings: texts that end a completion, found in the bytes of its tokens.

    stops = stop_strings(["\nQuestion:"], token_bytes(tokenizer).pieces)
    sample = sampler(policy, stop_strings=stops, ...)

A completion ends with the token that completes a stop string; the string may begin or
end inside a token. While decoding, each row carries a state of the Aho-Corasick
automaton: how much of a stop string its text ends with. The transitions by whole tokens
are computed here, in advance. Tokens with equal transitions form a kind, so the tables
are small: a kind per token, and a transition per kind and state.

Symbols: `V` tokens, `N` states, `K` kinds of tokens.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check


@dataclasses.dataclass(frozen=True, eq=False)
class StopStrings:
    """An automaton over tokens; state 0 is the start, the last state a complete string.

    texts: the stop strings in UTF-8.
    kind: i32[V + 1] kind of each token; the last entry is for ids outside [0, V).
    step: i32[K, N] the next state, by kind of token and state.
    """

    texts: tuple[bytes, ...]
    kind: np.ndarray
    step: np.ndarray

    def after(self, state: jax.Array, token: jax.Array) -> jax.Array:
        """The states i32[...] after the tokens i32[...]."""
        beyond = len(self.kind) - 1
        known = jnp.where((token >= 0) & (token < beyond), token, beyond)
        return jnp.asarray(self.step)[jnp.asarray(self.kind)[known], state]

    def found(self, state: jax.Array) -> jax.Array:
        """bool[...]: a stop string is complete."""
        return state == self.step.shape[1] - 1


def stop_strings(texts: Sequence[str], pieces: Sequence[bytes]) -> StopStrings:
    """The automaton of the given stop strings.

    Args:
      texts: the strings; the first to be complete ends the completion.
      pieces: the bytes of every token. No stop string extends across a token without
        bytes, or across an id that has no piece.

    Raises:
      ValueError: if there is no string, one is empty, or no sequence of tokens spells
        one.
    """
    if isinstance(texts, str) or not texts:
        check.refuse("stop strings", "be a tuple of texts, at least one", texts)
    for piece in pieces:
        check.raw_bytes("the bytes of a token", piece)
    wanted = []
    for text in texts:
        check.text("a stop string", text)
        if not text:
            raise ValueError(
                "a stop string must hold at least one character, got ''; every"
                " completion would end with its first token."
            )
        wanted.append(text.encode())
    made = _automaton(tuple(wanted), pieces)
    for text in wanted:
        alone = made if len(wanted) == 1 else _automaton((text,), pieces)
        if not _can_be_found(alone):
            raise ValueError(
                "a stop string must be one that tokens can spell, got"
                f" {text.decode()!r}: no sequence of the tokenizer's tokens holds it;"
                " leave it out or write it as the model does."
            )
    return made


def _automaton(texts: tuple[bytes, ...], pieces: Sequence[bytes]) -> StopStrings:
    effects = _by_token(_by_byte(texts), (*pieces, b""))
    kinds: dict[bytes, int] = {}  # several times faster than np.unique(axis=0)
    kind = [kinds.setdefault(row.tobytes(), len(kinds)) for row in effects]
    step = np.frombuffer(b"".join(kinds), np.int16).reshape(len(kinds), -1)
    return StopStrings(texts, np.array(kind, np.int32), step.astype(np.int32))


def _by_byte(texts: tuple[bytes, ...]) -> np.ndarray:
    """i16[N, 256]: the next state, by state and byte.

    A state stands for the longest suffix of the text that is a prefix of a stop string.
    """
    begins = sorted({text[:n] for text in texts for n in range(len(text))}, key=len)
    number = {begin: n for n, begin in enumerate(begins)}  # b"" is 0
    found = len(begins)
    table = np.zeros((found + 1, 256), np.int16)
    table[found] = found
    for begin, state in number.items():
        for byte in set(b"".join(texts)):  # any other byte leads to state 0
            text = begin + bytes([byte])
            if text.endswith(texts):
                table[state, byte] = found
            else:
                ends = (text[n:] for n in range(len(text) + 1))
                table[state, byte] = next(number[e] for e in ends if e in number)
    return table


def _by_token(by_byte: np.ndarray, pieces: Sequence[bytes]) -> np.ndarray:
    """i16[V, N]: the next state, by token and state."""
    length = np.array([len(piece) for piece in pieces])
    start = np.cumsum(length) - length
    flat = np.frombuffer(b"".join(pieces), np.uint8)
    found = len(by_byte) - 1
    table = np.tile(np.arange(found + 1, dtype=np.int16), (len(pieces), 1))
    table[length == 0, :found] = 0
    for n in range(length.max()):
        (longer,) = np.nonzero(length > n)
        table[longer] = by_byte[table[longer], flat[start[longer] + n][:, None]]
    return table


def _can_be_found(stops: StopStrings) -> bool:
    """Whether any sequence of tokens leads to the last state."""
    reached, new = {0}, {0}
    while new:
        new = set(stops.step[:, sorted(new)].ravel().tolist()) - reached
        reached |= new
    return stops.step.shape[1] - 1 in reached
