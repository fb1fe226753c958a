"""Verifiers that compare numbers, exactly and inside the graph.

A number is read as written; there is no floating point. The grammar, over bytes:

    number   = [sign] digits-part
    sign     = "+" | "-" | the minus of typesetters, U+2212
    digits   = whole ["." digit+]  |  "." digit+
    whole    = digit+  |  1 to 3 digits, then one or more groups of "," and 3 digits

with at most 24 digits in all, leading and trailing zeros counted; with more it is no
number. Numbers are equal when their values are: 007 = 7, 1.50 = 1.5, .5 = 0.5, -0 = 0,
+3 = 3, 1,000 = 1000. There are no exponents, no fractions, no other digits than 0-9.

A number in a text must stand alone (`neighbours`): a piece of something larger (`1/2`,
`x^2`, `10 000`, `3-5`) is never read, and neither is what it is a piece of. Between
sign and digits may stand a dollar, `$` or `\\$`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check
from rljax.verify import neighbours
from rljax.verify import text as texts
from rljax.verify.neighbours import is_digit, is_in, take
from rljax.verify.text import Text, Verifier
from rljax.verify.vocabulary import TokenBytes

BOX = b"\\boxed{"
MAX_DIGITS = 24
_LIMB = 8  # decimal digits in an int32
_ROWS = MAX_DIGITS // 3 + 1  # of 3 digits and a comma: one more than a number may have
_WINDOW = (MAX_DIGITS + 1) + 4 * _ROWS + 5  # fraction, whole part, \\$, sign
_MINUS = "\u2212".encode()
_POWERS = np.array([10**i for i in range(_LIMB)], np.int32)


class Numeral(NamedTuple):
    """A number as it stands in one text u8[N].

    valid: bool[] whether there is one.
    start, end: i32[] its first byte (the sign, the first digit or point), its last.
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
) -> Verifier:
    """Reward 1 if the completion is the number that the answer is.

    The text, less ASCII whitespace around it, must be a number (grammar: head of this
    file) and nothing else, and the sample must be finished: a number cut at the token
    limit may have lost digits.

    Args:
      table: the bytes of each token.
      after: read only what follows the first occurrence of this; without one the
        sample is wrong. `after=b"="` reads `1+2=3` as 3.
      max_bytes: see `text.judged`; a longer completion is wrong.

    Returns:
      (prompts, samples) -> Verdict. Reads `prompts.data["answer"]`, which must be a
      number in the same sense; if it is not, no sample is right.

    Raises:
      ValueError: if `after` is no `bytes`.
    """
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("after", after)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def judge(text, answer, finished):
        begin = _begin(text, after)
        return finished & _equal(_only(text, begin), _only(answer, 0)) & (begin >= 0)

    return texts.judged(table, judge, max_bytes=max_bytes)


def last_number(
    table: TokenBytes, *, after: bytes = b"", max_bytes: int | None = None
) -> Verifier:
    """Reward 1 if the last number in the completion is the answer.

    The last number ends at the last digit of the text, and must stand alone there
    (`neighbours`): if that digit belongs to something that is no number, the sample is
    wrong; no earlier number is looked for. So `#### 18`, `is $1,234.50.`, `x = -3`,
    `**18**`, `\\(18\\)`, `18%` and `18 apples` are read; `1/2`, `2 1/2`, `5 cm^2`,
    `1e3`, `3-5`, `10:30`, `3, 5`, `10,20`, `1.2.3`, `18x`, `- 5`, `minus 5` and
    `5 million` are no numbers. A text with `\\boxed{` in it has said where its answer
    is: then the number is the one in the last box, as `number_after` reads it, and
    nothing else.

    Where digits may follow an answer without a box, use `number_after`.

    The answer must be a number alone, as for `number`. Unfinished samples count too if
    the text after the number shows that it had ended: `is 18. So`, not `is 18`.
    Args, Returns and Raises are those of `number`.
    """
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("after", after)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def judge(text, answer, finished):
        begin = _begin(text, after)
        found = _last(text, begin, finished)
        return _equal(found, _only(answer, 0)) & (begin >= 0)

    return texts.judged(table, judge, max_bytes=max_bytes)


def number_after(
    table: TokenBytes, marker: bytes, *, max_bytes: int | None = None
) -> Verifier:
    """Reward 1 if the number right after the last marker is the answer.

    `####` is GSM8K's marker, `\\boxed{` that of LaTeX. Any text may follow the number:
    `#### 18`, a line break and `I checked it in 2 ways.` is 18. Between marker and
    number may stand whitespace and opening marks (`#### **$18**`); the number must
    stand alone (`neighbours`). What comes before the marker does not count.

    After a marker that ends in `{` the number must be all that is in the braces, and
    then the braces and what they hold stand for it: `-\\boxed{5}`, `\\boxed{5}^2`,
    `\\boxed{5x}` and `\\boxed{3, 5}` are no numbers.

    Args:
      table: the bytes of each token.
      marker: what announces the number, at least one byte; its last occurrence counts,
        also if no number follows it.
      max_bytes: see `text.judged`; a longer completion is wrong.

    Returns:
      (prompts, samples) -> Verdict; answers and unfinished samples as for
      `last_number`.

    Raises:
      ValueError: if `marker` is empty or no `bytes`; when traced, if no completion has
        room for it.
    """
    require_marker(marker)

    def judge(text, answer, finished):
        place = texts.find_last(text, marker)
        found = _announced(text, place, marker, finished)
        return _equal(found, _only(answer, 0))

    return texts.judged(table, judge, max_bytes=max_bytes)


def require_marker(marker: bytes) -> None:
    """Whether `marker` can be one, checked when a verifier is made."""
    check.raw_bytes("number_after's marker", marker)
    if not marker:
        raise ValueError(
            "number_after needs a marker of at least one byte, got b''; use"
            " last_number or number where nothing announces the answer."
        )


def _begin(text: Text, after: bytes) -> jax.Array:
    """i32[]: the first byte to read; -1 if `after` is wanted and does not occur."""
    if not after:
        return jnp.zeros((), jnp.int32)
    found = texts.find(text, after)
    return jnp.where(found < 0, -1, found + len(after))


def _only(text: Text, begin) -> Numeral:
    """The number that the text from `begin` on is, whitespace around it ignored."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    ink = ~is_in(text.bytes, texts.WHITESPACE)
    ink &= (index >= begin) & (index < text.length)
    first = jnp.min(jnp.where(ink, index, text.bytes.size))
    found = _ending_at(text, begin, jnp.max(jnp.where(ink, index, -1)))
    return found._replace(valid=found.valid & ~found.dollar & (found.start == first))


def _last(text: Text, begin, finished) -> Numeral:
    """The number in the last box, else the one at the last digit, if it is alone."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    digit = is_digit(text.bytes) & (index >= begin)
    end = jnp.max(jnp.where(digit, index, -1))
    some = neighbours.marks(text, begin)
    if text.bytes.size <= len(BOX):  # has room for no box with a number
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
    """The number after the marker at `place`, if it is alone."""
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
    """i32[]: the last digit of the first run of digits, points and commas, or -1."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    digit = is_digit(text.bytes)
    first = jnp.min(jnp.where(digit & (index >= begin), index, index.size))
    stop = ~(digit | is_in(text.bytes, b".,")) & (index > first)
    stop = jnp.min(jnp.where(stop, index, index.size))
    end = jnp.max(jnp.where(digit & (index < stop), index, -1))
    return jnp.where(first < index.size, end, -1)


def _in_braces(some: neighbours.Marks, found: Numeral, inner):
    """Whether the number is all between byte `inner` and a `}`, and where that is."""
    opened = some.before(found.start, some.opening | some.space) < inner
    close = some.beyond(found.end + 1, some.closing | some.space)
    closed = (close < some.length) & (take(some.bytes, close) == ord("}"))
    return opened & closed & (found.start >= inner), close


def _ending_at(text: Text, begin, end) -> Numeral:
    """The number whose last digit is byte `end`; invalid if that is no digit.

    It takes all digits, points and commas that stand before it without a space, or it
    is none. Read backwards, a number has a rigid form: digits to the point, then either
    plain digits or threes with commas. So a window of fixed size before `end` decides.
    """
    index = end - jnp.arange(_WINDOW, dtype=jnp.int32)
    back = jnp.where(index >= begin, take(text.bytes, index), 0)  # [i]: i before `end`

    run = _leading(is_digit(back))
    point = take(back, run) == ord(".")
    bare = point & ~is_digit(take(back, run + 1))
    skip = jnp.where(point, run + 1, 0)  # to the last digit of the whole part
    byte, place, span = _whole_part(back, skip)
    span = jnp.where(bare, 0, span)
    whole = is_digit(byte) & (jnp.arange(byte.size, dtype=jnp.int32) < span)

    size = skip + span  # bytes from the first digit or point to `end`
    before = take(back, size + jnp.arange(2, dtype=jnp.int32))
    whole_run = ~(is_digit(before[0]) | is_in(before[0], b".,"))
    dollar = before[0] == ord("$")
    mark = size + jnp.where(dollar, 1 + (before[1] == ord("\\")).astype(jnp.int32), 0)
    sign = take(back, mark + jnp.arange(3, dtype=jnp.int32))
    typeset = jnp.all(sign == np.frombuffer(_MINUS[::-1], np.uint8))
    signed = is_in(sign[0], b"+-") | typeset
    width = jnp.where(typeset, len(_MINUS), 1)

    offset = jnp.arange(MAX_DIGITS, dtype=jnp.int32)
    fractional = point & (offset < run)
    parts = (
        _limbs(byte, place, whole),
        _limbs(back[:MAX_DIGITS], MAX_DIGITS - run + offset, fractional),
    )
    num_digits = jnp.sum(whole, dtype=jnp.int32) + jnp.where(point, run, 0)
    is_one = (end >= 0) & is_digit(back[0]) & whole_run
    return Numeral(
        valid=is_one & (num_digits <= MAX_DIGITS),
        start=end + 1 - jnp.where(signed, mark + width, size),
        end=end,
        dollar=signed & dollar,
        negative=signed & (sign[0] != ord("+")),
        limbs=jnp.stack(parts),
    )


def _whole_part(back, skip):
    """The bytes backwards from `skip`, their decimal places, and how many are in it.

    Backwards, grouped digits fall into rows of four: three digits and a comma. Row k
    joins row k+1 if it is full and has its comma, and row k+1 begins with 1 to 3
    digits. With more than 8 rows it has too many digits.
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
    """i32[3]: the digits under the mask at their decimal places 0..23, 8 to a limb."""
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
    """i32[...]: how many of the last axis hold before the first that does not."""
    index = jnp.arange(flags.shape[-1], dtype=jnp.int32)
    fails = jnp.where(flags, index.size, jnp.broadcast_to(index, flags.shape))
    return jnp.min(fails, axis=-1)
