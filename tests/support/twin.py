"""The verifiers of `rljax.verify.graph` once more, in plain Python.

Each does what its namesake documents and shares no code with it beyond the table of
token bytes, so that each can be checked against the other. Verdicts hold NumPy arrays.
"""

from collections.abc import Callable

import numpy as np

from rljax.types import Prompts, Samples, Verdict, Verify
from rljax.verify import TokenBytes, decode_host
from rljax.verify.graph.text import GAP, WHITESPACE, answers_host
from rljax.verify.host.numeral import (
    read_last_number,
    read_number,
    read_number_after,
)


def number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verify:
    """Twin of `numeral.number`."""

    def judge(text, answer, finished):
        value = read_number(_rest(text, after))
        return finished and value is not None and value == read_number(answer)

    return _judged(table, judge, max_bytes)


def last_number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verify:
    """Twin of `numeral.last_number`."""

    def judge(text, answer, finished):
        value = read_last_number(_rest(text, after), finished)
        return value is not None and value == read_number(answer)

    return _judged(table, judge, max_bytes)


def number_after(
    table: TokenBytes, marker: bytes, *, max_bytes: int | None = None
) -> Verify:
    """Twin of `numeral.number_after`."""

    def judge(text, answer, finished):
        value = read_number_after(text, marker, finished)
        return value is not None and value == read_number(answer)

    return _judged(table, judge, max_bytes)


def exact(
    table: TokenBytes, *, strip: bytes = WHITESPACE, max_bytes: int | None = None
) -> Verify:
    """Twin of `match.exact`."""

    def judge(text, answer, finished):
        return finished and text.strip(strip) == answer.strip(strip)

    return _judged(table, judge, max_bytes)


def contains(
    table: TokenBytes, needle: bytes, *, max_bytes: int | None = None
) -> Verify:
    """Twin of `match.contains`."""

    def verify(prompts: Prompts, samples: Samples) -> Verdict:
        found = [
            needle in text and _fits(text, max_bytes)
            for text in decode_host(table, samples.tokens, samples.mask, gap=GAP)
        ]
        return _binary(found, np.shape(samples.finished))

    return verify


def _rest(text: bytes, after: bytes) -> bytes:
    return text.partition(after)[2] if after else text


def _fits(text: bytes, max_bytes: int | None) -> bool:
    return max_bytes is None or len(text) <= max_bytes


def _judged(
    table: TokenBytes,
    judge: Callable[[bytes, bytes, bool], bool],
    max_bytes: int | None,
) -> Verify:
    def verify(prompts: Prompts, samples: Samples) -> Verdict:
        finished = np.asarray(samples.finished)
        texts = decode_host(table, samples.tokens, samples.mask, gap=GAP)
        answers = [a for a in answers_host(prompts) for _ in range(finished.shape[1])]
        correct = [
            judge(text, answer, done) and _fits(text, max_bytes)
            for text, answer, done in zip(
                texts, answers, finished.ravel().tolist(), strict=True
            )
        ]
        return _binary(correct, finished.shape)

    return verify


def _binary(correct: list[bool], shape: tuple[int, ...]) -> Verdict:
    array = np.array(correct, bool).reshape(shape)
    return Verdict(
        reward=array.astype(np.float32), correct=array, failed=np.zeros(shape, bool)
    )
