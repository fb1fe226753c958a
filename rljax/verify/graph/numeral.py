"""Verifiers that compare numbers, exactly and inside the graph.

A number is read digit by digit, without floating point. The grammar, over bytes:

    number   = [sign] digits-part
    sign     = "+" | "-" | the minus of typesetters, U+2212
    digits   = whole ["." digit+]  |  "." digit+
    whole    = digit+  |  1 to 3 digits, then one or more groups of "," and 3 digits

A number has at most 24 digits, leading and trailing zeros included. Two numbers are
equal if their values are: 007 = 7, 1.50 = 1.5, .5 = 0.5, -0 = 0, +3 = 3, 1,000 = 1000.
There are no exponents, no fractions, and no digits but 0-9.

A number in a text must stand alone (`neighbours`). If it is a part of something larger
(`1/2`, `x^2`, `10 000`, `3-5`), neither the part nor the whole is read. A dollar, `$`
or `\\$`, may stand between sign and digits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check
from rljax.types import Verify
from rljax.verify.graph import neighbours
from rljax.verify.graph import text as texts
from rljax.verify.graph.neighbours import is_digit, is_in, take
from rljax.verify.graph.text import Text
from rljax.verify.graph.vocabulary import TokenBytes

BOX = b"\\boxed{"
MAX_DIGITS = 24
_LIMB = 8  # decimal digits in an int32
_ROWS = MAX_DIGITS // 3 + 1  # of 3 digits and a comma; one more than is allowed
_WINDOW = (MAX_DIGITS + 1) + 4 * _ROWS + 5  # fraction, whole part, \\$, sign
_MINUS = "\u2212".encode()
_POWERS = np.array([10**i for i in range(_LIMB)], np.int32)


class Numeral(NamedTuple):
    """A number found in one text u8[N].

    valid: bool[] whether there is one.
    start, end: i32[] positions of its first byte (sign, digit or point) and its last.
    dollar: bool[] whether a dollar stands between sign and digits.
    negative: bool[].
    limbs: i32[2, 3] whole part and fraction, 24 decimal places each, 8 per limb.
    """

    valid: jax.Array
    start: jax.Array
    end: jax.Array
    dollar: jax.Array
    negative: jax.Array
    limbs: jax.Array


def number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verify:
    """Reward 1 if the completion is a number that equals the answer.

    The text must be a number (grammar: head of this file) and nothing else, except for
    ASCII whitespace around it. The sample must be finished, as a number that was cut at
    the token limit may have lost digits.

    Args:
      table: the bytes of each token.
      after: only the text after its first occurrence is read; a sample without it is
        wrong. `after=b"="` reads `1+2=3` as 3.
      max_bytes: see `text.text_verifier`; a longer completion is wrong.

    Returns:
      (prompts, samples) -> Verdict. Reads `prompts.data["answer"]`, which must be a
      number by the same grammar; if it is not, no sample is right.

    Raises:
      ValueError: if `after` is not `bytes`.
    """
    check.raw_bytes("after", after)

    def judge(text, answer, finished):
        begin = _begin(text, after)
        return finished & _equal(_only(text, begin), _only(answer, 0)) & (begin >= 0)

    return texts.text_verifier(table, judge, max_bytes=max_bytes)


def last_number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verify:
    """Reward 1 if the last number in the completion equals the answer.

    The last number ends at the last digit of the text and must stand alone there
    (`neighbours`). If this digit belongs to something that is not a number, the sample
    is wrong; earlier numbers are not read. These are numbers: `#### 18`,
    `is $1,234.50.`, `x = -3`, `**18**`, `\\(18\\)`, `18%`, `18 apples`. These are not:
    `1/2`, `2 1/2`, `5 cm^2`, `1e3`, `3-5`, `10:30`, `3, 5`, `10,20`, `1.2.3`, `18x`,
    `- 5`, `minus 5`, `5 million`.

    If the text contains `\\boxed{`, only the number in the last box is read, as
    `number_after` reads it. If other digits may follow an answer without a box, use
    `number_after`.

    The answer must be a number and nothing else, as for `number`. An unfinished sample
    counts if the text after the number shows that the number has ended: `is 18. So`
    does, `is 18` does not. Args, Returns and Raises are those of `number`.
    """
    check.raw_bytes("after", after)

    def judge(text, answer, finished):
        begin = _begin(text, after)
        found = _last(text, begin, finished)
        return _equal(found, _only(answer, 0)) & (begin >= 0)

    return texts.text_verifier(table, judge, max_bytes=max_bytes)


def number_after(
    table: TokenBytes, marker: bytes, *, max_bytes: int | None = None
) -> Verify:
    """Reward 1 if the number right after the last marker equals the answer.

    GSM8K's marker is `####`, LaTeX's is `\\boxed{`. Any text may follow the number:
    `#### 18`, a line break and `I checked it in 2 ways.` is 18. Whitespace and opening
    marks may stand between marker and number (`#### **$18**`). The number must stand
    alone (`neighbours`). Text before the marker is ignored.

    If the marker ends in `{`, the braces must hold the number and nothing else, and the
    marker with its braces must stand alone: `-\\boxed{5}`, `\\boxed{5}^2`,
    `\\boxed{5x}` and `\\boxed{3, 5}` are not numbers.

    Args:
      table: the bytes of each token.
      marker: the text before the number, at least one byte. Its last occurrence counts,
        even if no number follows it.
      max_bytes: see `text.text_verifier`; a longer completion is wrong.

    Returns:
      (prompts, samples) -> Verdict; answers and unfinished samples as for
      `last_number`.

    Raises:
      ValueError: if `marker` is empty or not `bytes`; when traced, if no completion is
        long enough for it.
    """
    check.raw_bytes("marker", marker)
    if not marker:
        raise ValueError(
            "marker must have at least one byte, got b''; use last_number or number"
            " where nothing announces the answer."
        )

    def judge(text, answer, finished):
        place = texts.find_last(text, marker)
        found = _announced(text, place, marker, finished)
        return _equal(found, _only(answer, 0))

    return texts.text_verifier(table, judge, max_bytes=max_bytes)


def _begin(text: Text, after: bytes) -> jax.Array:
    """i32[]: the first byte to read; -1 if `after` is given but does not occur."""
    if not after:
        return jnp.zeros((), jnp.int32)
    found = texts.find(text, after)
    return jnp.where(found < 0, -1, found + len(after))


def _only(text: Text, begin) -> Numeral:
    """The text from `begin` on as a number, ignoring whitespace around it."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    ink = ~is_in(text.bytes, texts.WHITESPACE)
    ink &= (index >= begin) & (index < text.length)
    first = jnp.min(jnp.where(ink, index, text.bytes.size))
    found = _ending_at(text, begin, jnp.max(jnp.where(ink, index, -1)))
    return found._replace(valid=found.valid & ~found.dollar & (found.start == first))


def _last(text: Text, begin, finished) -> Numeral:
    """The number in the last box, or else at the last digit, if it stands alone."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    digit = is_digit(text.bytes) & (index >= begin)
    end = jnp.max(jnp.where(digit, index, -1))
    some = neighbours.marks(text, begin)
    if text.bytes.size <= len(BOX):  # too short for a box with a number
        found = _ending_at(text, begin, end)
        return _if_alone(found, some, found.start, found.end + 1, finished)
    place = texts.find_last(text, BOX)
    boxed, inner = place >= begin, place + len(BOX)
    end = jnp.where(boxed, _end_of_first(text, inner), end)
    found = _ending_at(text, jnp.where(boxed, inner, begin), end)
    held, close = _in_braces(some, found, inner)
    found = found._replace(valid=found.valid & (held | ~boxed))
    left = jnp.where(boxed, place, found.start)
    right = jnp.where(boxed, close, found.end) + 1
    return _if_alone(found, some, left, right, finished)


def _announced(text: Text, place, marker: bytes, finished) -> Numeral:
    """The number after the marker at `place`, if it stands alone."""
    inner = place + len(marker)
    found = _ending_at(text, inner, _end_of_first(text, inner))
    if marker.endswith(b"{"):
        some = neighbours.marks(text, jnp.zeros_like(place))
        reached, close = _in_braces(some, found, inner)
        left, right = place, close + 1
    else:
        some = neighbours.marks(text, inner)
        between = some.opening | some.space | is_in(some.bytes, texts.WHITESPACE)
        reached = some.before(found.start, between) < inner
        left, right = found.start, found.end + 1
    found = found._replace(valid=found.valid & reached & (place >= 0))
    return _if_alone(found, some, left, right, finished)


def _if_alone(found: Numeral, some: neighbours.Marks, left, right, finished) -> Numeral:
    free = neighbours.alone(some, left, right, finished)
    return found._replace(valid=found.valid & free)


def _end_of_first(text: Text, begin) -> jax.Array:
    """i32[]: position of the last digit in the first run of digits, points and commas
    from `begin` on; -1 if there is none.
    """
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    digit = is_digit(text.bytes)
    first = jnp.min(jnp.where(digit & (index >= begin), index, index.size))
    stop = ~(digit | is_in(text.bytes, b".,")) & (index > first)
    stop = jnp.min(jnp.where(stop, index, index.size))
    end = jnp.max(jnp.where(digit & (index < stop), index, -1))
    return jnp.where(first < index.size, end, -1)


def _in_braces(some: neighbours.Marks, found: Numeral, inner):
    """(whether the number alone fills the text from `inner` to a `}`, place of it)."""
    opened = some.before(found.start, some.opening | some.space) < inner
    close = some.beyond(found.end + 1, some.closing | some.space)
    closed = (close < some.length) & (take(some.bytes, close) == ord("}"))
    return opened & closed & (found.start >= inner), close


def _ending_at(text: Text, begin, end) -> Numeral:
    """The number whose last digit is byte `end`; invalid if that byte is no digit.

    All digits, points and commas directly before `end` must belong to the number, or it
    is invalid. As a number has at most 24 digits, a window of fixed size is enough.
    """
    index = end - jnp.arange(_WINDOW, dtype=jnp.int32)
    # The text in reverse: back[i] is the byte i before `end`.
    back = jnp.where(index >= begin, take(text.bytes, index), 0)
    digits = _digits(back)
    sign = _sign(back, digits.size)
    before = take(back, digits.size)
    is_whole = ~(is_digit(before) | is_in(before, b".,"))
    is_number = (end >= 0) & is_digit(back[0]) & is_whole
    return Numeral(
        valid=is_number & (digits.count <= MAX_DIGITS),
        start=end + 1 - jnp.where(sign.width > 0, sign.width, digits.size),
        end=end,
        dollar=sign.dollar,
        negative=sign.negative,
        limbs=digits.limbs,
    )


class _Digits(NamedTuple):
    """The digits of a number.

    size: i32[] bytes from the first digit or point to the last digit.
    count: i32[] how many digits.
    limbs: i32[2, 3] as in `Numeral`.
    """

    size: jax.Array
    count: jax.Array
    limbs: jax.Array


def _digits(back) -> _Digits:
    """Reads digits backwards: the fraction up to the point, then the whole part.

    If no point follows the first run of digits, this run is the whole part.
    """
    run = _leading(is_digit(back))
    point = take(back, run) == ord(".")
    bare = point & ~is_digit(take(back, run + 1))  # .5
    skip = jnp.where(point, run + 1, 0)  # to the last digit of the whole part
    byte, place, span = _whole_part(back, skip)
    span = jnp.where(bare, 0, span)
    whole = is_digit(byte) & (jnp.arange(byte.size, dtype=jnp.int32) < span)
    offset = jnp.arange(MAX_DIGITS, dtype=jnp.int32)
    fraction = point & (offset < run)
    limbs = (
        _limbs(byte, place, whole),
        _limbs(back[:MAX_DIGITS], MAX_DIGITS - run + offset, fraction),
    )
    count = jnp.sum(whole, dtype=jnp.int32) + jnp.where(point, run, 0)
    return _Digits(skip + span, count, jnp.stack(limbs))


class _Sign(NamedTuple):
    """The sign of a number; a dollar may stand between sign and digits.

    width: i32[] bytes from the sign to the last digit; 0 if there is no sign.
    dollar, negative: bool[], False if there is no sign.
    """

    width: jax.Array
    dollar: jax.Array
    negative: jax.Array


def _sign(back, size) -> _Sign:
    """Reads the sign, backwards, before the `size` bytes of a number."""
    before = take(back, size + jnp.arange(2, dtype=jnp.int32))
    dollar = before[0] == ord("$")
    escaped = (before[1] == ord("\\")).astype(jnp.int32)
    place = size + jnp.where(dollar, 1 + escaped, 0)
    byte = take(back, place + jnp.arange(3, dtype=jnp.int32))
    typeset = jnp.all(byte == np.frombuffer(_MINUS[::-1], np.uint8))
    signed = is_in(byte[0], b"+-") | typeset
    width = place + jnp.where(typeset, len(_MINUS), 1)
    return _Sign(
        width=jnp.where(signed, width, 0),
        dollar=signed & dollar,
        negative=signed & (byte[0] != ord("+")),
    )


def _whole_part(back, skip):
    """The whole part, backwards from byte `skip`.

    Grouped digits, read backwards, form rows of four bytes: three digits and a comma.
    Rows k and k+1 belong together if row k is three digits and a comma, and row k+1
    begins with 1 to 3 digits. More than 8 rows would have too many digits.

    Returns:
      (bytes, their decimal places, how many of the bytes belong to the whole part).
    """
    offset = np.arange(_ROWS * 4, dtype=np.int32)
    byte = take(back, skip + offset)
    digit = is_digit(byte)

    lead = _leading(digit.reshape(_ROWS, 4))
    opens = (lead >= 1) & (lead <= 3)
    full = (lead == 3) & (byte.reshape(_ROWS, 4)[:, 3] == ord(","))
    joins = _leading(full[:-1] & opens[1:])

    grouped = joins > 0
    span = jnp.where(grouped, 4 * joins + take(lead, joins), _leading(digit))
    return byte, jnp.where(grouped, offset - offset // 4, offset), span


def _limbs(byte, place, mask):
    """i32[3]: the masked digits at their decimal places 0..23, 8 per limb."""
    value = byte.astype(jnp.int32) - ord("0")
    value *= take(jnp.asarray(_POWERS), place % _LIMB)
    limb = jnp.arange(MAX_DIGITS // _LIMB, dtype=jnp.int32)
    here = (place // _LIMB)[:, None] == limb[None]
    return jnp.sum(jnp.where(here & mask[:, None], value[:, None], 0), axis=0)


def _equal(a: Numeral, b: Numeral) -> jax.Array:
    zero = jnp.all(a.limbs == 0)
    same = jnp.all(a.limbs == b.limbs) & ((a.negative == b.negative) | zero)
    return a.valid & b.valid & same


def _leading(flags) -> jax.Array:
    """i32[...]: number of leading True flags along the last axis."""
    index = jnp.arange(flags.shape[-1], dtype=jnp.int32)
    fails = jnp.where(flags, index.size, jnp.broadcast_to(index, flags.shape))
    return jnp.min(fails, axis=-1)
