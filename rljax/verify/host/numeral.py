"""Numbers in text, read in plain Python on the host.

The functions read the same numbers as the verifiers of `graph.numeral`, whose
docstrings define what a number is and which one counts. The two share no code: this
file uses regular expressions and `decimal`, so that tests can compare both.
"""

import decimal
import re

from rljax.verify.graph.text import GAP, WHITESPACE

# The number that ends the text, with all digits, points and commas before it.
_NUMBER_AT_END = re.compile(
    rb"""
    (?: (?P<sign> [+-] | \xe2\x88\x92 ) (?P<dollar> \\?\$ )? | (?<![0-9.,]) )
    (?: (?P<whole> \d{1,3} (?:,\d{3})+ | \d+ ) (?P<fraction> \.\d+ )?
      | (?P<bare> \.\d+ )
    ) \Z
    """,
    re.VERBOSE,
)
_BOX = rb"\boxed{"
_BLANK = b" \t:\xff=<>\n\r\v\f"  # the spaces of `neighbours`, then its edges
_SPACE, _EDGE = _BLANK[:4], _BLANK[4:]
_OPENING, _CLOSING = b"\"'`([$#", b"\"'`)]$%.,;?"
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PASSED = _OPENING + _CLOSING + _SPACE
_BEFORE = re.compile(rb"minus|negative|plus|times|over|point|x", re.IGNORECASE)
_BETWEEN = re.compile(rb"and|or|to|by", re.IGNORECASE)
_AFTER = re.compile(
    rb"(?:hundred|thousand|million|billion|trillion|dozen)s?"
    rb"|plus|minus|times|x|divided|over|point|squared|cubed|factorial|and|or|to|by",
    re.IGNORECASE,
)
_NO_DIGITS = bytes(set(range(256)) - set(b"0123456789"))


def read_number(text: bytes) -> decimal.Decimal | None:
    """The text as a number, ignoring whitespace around it; None if it is not a number.

    Check a data set with it: no completion matches an answer for which this is None.
    """
    text = text.strip(WHITESPACE)
    match = _NUMBER_AT_END.search(text)
    if match is None or match.start() > 0 or match["dollar"]:
        return None
    return _value(match)


def read_last_number(text: bytes, finished: bool = True) -> decimal.Decimal | None:
    """The number in the last box, or else at the last digit; None if there is none.

    Args:
      finished: whether the completion ended by itself. A number at the end of an
        unfinished text does not count, as it may go on.
    """
    if _BOX in text:
        return read_number_after(text, _BOX, finished)
    end = len(text.rstrip(_NO_DIGITS))
    match = _NUMBER_AT_END.search(text[:end])
    free = match and _alone(_plain(text), match.start(), end, finished)
    return _value(match) if match and free else None


def read_number_after(
    text: bytes, marker: bytes, finished: bool = True
) -> decimal.Decimal | None:
    """The number right after the last marker; None if there is none.

    Args:
      marker: the bytes before the number.
      finished: as for `read_last_number`.
    """
    place = text.rfind(marker)
    rest = text[place + len(marker) :]
    digits = re.search(rb"\d(?:[\d.,]*\d)?", rest)
    match = _NUMBER_AT_END.search(rest[: digits.end()]) if digits else None
    if place < 0 or digits is None or match is None:
        return None
    left, right = match.start(), digits.end()
    if marker.endswith(b"{"):
        plain, inner = _plain(text), place + len(marker)
        closed = _in_braces(plain, inner, inner + left, inner + right)
        free = closed is not None and _alone(plain, place, closed, finished)
    else:
        plain = _plain(rest)
        reached = not plain[:left].strip(_OPENING + _SPACE + WHITESPACE)
        free = reached and _alone(plain, left, right, finished)
    return _value(match) if free else None


def _plain(text: bytes) -> bytes:
    """The text with `'` in place of escaping backslashes and of bold asterisks."""

    def bold(match: re.Match) -> bytes:
        around = text[max(match.start() - 1, 0) : match.end() + 1].split(match[0])
        spaced = not b"".join(around).strip(WHITESPACE + GAP)
        return match[0] if len(match[0]) == 2 and spaced else b"'" * len(match[0])

    return re.sub(rb"\\(?=[()[\]$%])", b"'", re.sub(rb"\*\*+", bold, text))


def _in_braces(plain: bytes, inner: int, left: int, right: int) -> int | None:
    """Where the braces that open before `inner` end; None if they hold more than
    left..right.
    """
    marks = _OPENING + _SPACE
    rest = plain[right:].lstrip(_CLOSING + _SPACE)
    if left < inner or plain[inner:left].strip(marks) or not rest.startswith(b"}"):
        return None
    return len(plain) - len(rest) + 1


def _alone(plain: bytes, left: int, right: int, finished: bool) -> bool:
    """Whether bytes left..right-1 stand alone, as `graph.neighbours` defines it."""
    near = plain[:left].rstrip(_OPENING)
    far = near.rstrip(_PASSED)
    stem = far.rstrip(_LETTERS)
    word, opens = far[len(stem) :], plain[len(far) : len(far) + 1] in (b"(", b"[")
    joins = stem.rstrip(_PASSED)[-1:].isdigit() and _BETWEEN.fullmatch(word)
    other = _BEFORE.fullmatch(word) or joins or stem.endswith(b"\\")
    is_word = word and not opens and not other
    if near and near[-1] not in _BLANK:
        return False
    if far and far[-1] not in _EDGE and not is_word:
        return False

    near = plain[right:].lstrip(_CLOSING)
    far = near.lstrip(_PASSED)
    word = far[: len(far) - len(far.lstrip(_LETTERS))]
    is_word = word and not _AFTER.fullmatch(word) and (finished or word != far)
    if near and near[0] not in _BLANK:
        return False
    return far[0] in _EDGE or bool(is_word) if far else finished


def _value(match: re.Match) -> decimal.Decimal | None:
    whole = (match["whole"] or b"").replace(b",", b"").decode()
    fraction = (match["fraction"] or match["bare"] or b"").decode()
    if len(whole) + len(fraction.removeprefix(".")) > 24:
        return None
    sign = "" if match["sign"] in (None, b"+") else "-"
    return decimal.Decimal(f"{sign}{whole or '0'}{fraction}")
