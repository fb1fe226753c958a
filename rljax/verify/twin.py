"""The in-graph verifiers once more, in plain Python, for the host.

Each does what its namesake in `numeral` and `match` documents, with regular expressions
and `decimal`, and shares no code with it beyond the table of token bytes, so that each
can be checked against the other. Verdicts hold NumPy arrays.
"""

import decimal
import re
from collections.abc import Callable

import numpy as np

from rljax import check
from rljax.types import Prompts, Samples, Verdict
from rljax.verify.text import WHITESPACE, Verifier, answers_host, decode_host
from rljax.verify.vocabulary import TokenBytes

# The longest number that ends the text. A search finds the leftmost start, hence the
# longest. `(?<!\d\.)`: the digits of a fraction do not start a group of thousands.
_NUMBER_AT_END = re.compile(
    rb"""
    (?P<sign> (?<![0-9A-Za-z)]) [+-] )?
    (?P<dollar> \$ )?
    (?: (?P<whole> (?<!\d)(?<!\d\.) \d{1,3} (?:,\d{3})+ | (?<!\d) \d+ )
        (?P<fraction> \.\d+ )?
      | (?P<bare> (?<![\d.]) \.\d+ )
    ) \Z
    """,
    re.VERBOSE,
)

_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


def number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verifier:
    """Twin of `numeral.number`."""
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("after", after)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def judge(text, answer, finished):
        value = read_number(_rest(text, after))
        return finished and value is not None and value == read_number(answer)

    return _judged(table, judge, max_bytes)


def last_number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verifier:
    """Twin of `numeral.last_number`."""
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("after", after)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def judge(text, answer, finished):
        value = read_last_number(_rest(text, after))
        return value is not None and value == read_number(answer)

    return _judged(table, judge, max_bytes)


def exact(
    table: TokenBytes, *, strip: bytes = WHITESPACE, max_bytes: int | None = None
) -> Verifier:
    """Twin of `match.exact`."""
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("strip", strip)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def judge(text, answer, finished):
        return finished and text.strip(strip) == answer.strip(strip)

    return _judged(table, judge, max_bytes)


def contains(
    table: TokenBytes, needle: bytes, *, max_bytes: int | None = None
) -> Verifier:
    """Twin of `match.contains`."""
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("needle", needle)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def verify(prompts: Prompts, samples: Samples) -> Verdict:
        found = [
            needle in text and _fits(text, max_bytes)
            for text in decode_host(table, samples.tokens, samples.mask)
        ]
        return _binary(found, np.shape(samples.finished))

    return verify


def read_number(text: bytes) -> decimal.Decimal | None:
    """The number that the text is, whitespace around it ignored; None if it is none.

    A data set can be checked with it: an answer that reads as None is never matched.
    """
    text = text.strip(WHITESPACE)
    match = _NUMBER_AT_END.search(text)
    if match is None or match.start() > 0 or match["dollar"]:
        return None
    return _value(match)


def read_last_number(text: bytes) -> decimal.Decimal | None:
    """The last number in the text; None if there is none."""
    match = _NUMBER_AT_END.search(text.rstrip(_NO_DIGITS))
    return None if match is None else _value(match)


def _value(match: re.Match) -> decimal.Decimal | None:
    whole = (match["whole"] or b"").replace(b",", b"").decode()
    fraction = (match["fraction"] or match["bare"] or b"").decode()
    if len(whole) + len(fraction.removeprefix(".")) > 24:
        return None
    sign = "-" if match["sign"] == b"-" else ""
    return decimal.Decimal(f"{sign}{whole or '0'}{fraction}")


def _rest(text: bytes, after: bytes) -> bytes:
    return text.partition(after)[2] if after else text


def _fits(text: bytes, max_bytes: int | None) -> bool:
    return max_bytes is None or len(text) <= max_bytes


def _judged(
    table: TokenBytes,
    judge: Callable[[bytes, bytes, bool], bool],
    max_bytes: int | None,
) -> Verifier:
    def verify(prompts: Prompts, samples: Samples) -> Verdict:
        finished = np.asarray(samples.finished)
        texts = decode_host(table, samples.tokens, samples.mask)
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
