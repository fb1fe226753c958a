"""Verifiers that compare numbers, exactly and inside the graph.

A number is read as written; there is no floating point. The grammar, over bytes:

    number   = [sign] digits-part
    digits   = whole ["." digit+]  |  "." digit+
    whole    = digit+  |  1 to 3 digits, then one or more groups of "," and 3 digits

with at most 24 digits in all, leading and trailing zeros counted; with more it is no
number. Numbers are equal when their values are: 007 = 7, 1.50 = 1.5, .5 = 0.5, -0 = 0,
+3 = 3, 1,000 = 1000. There are no exponents, no fractions, no other digits than 0-9.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check
from rljax.verify import text as texts
from rljax.verify.text import Text, Verifier
from rljax.verify.vocabulary import TokenBytes

MAX_DIGITS = 24
_LIMB = 8  # decimal digits in an int32
_ROWS = MAX_DIGITS // 3 + 1  # of 3 digits and a comma: one more than a number may have
_WINDOW = (MAX_DIGITS + 1) + (4 * _ROWS + 1) + 2  # fraction, whole part, "$", sign
_POWERS = np.array([10**i for i in range(_LIMB)], np.int32)


class Numeral(NamedTuple):
    """A number as it stands in one text u8[N].

    valid: bool[] whether there is one.
    start: i32[] its first byte: the sign or the first digit or point.
    negative: bool[].
    limbs: i32[2, 3] whole part and fraction, 24 decimal places each, 8 per limb.
    """

    valid: jax.Array
    start: jax.Array
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
    """Reward 1 if the last number in the completion is the answer, as for GSM8K.

    The last number ends at the last digit of the text and is the longest piece of text
    ending there that is a number. Whatever surrounds it is ignored, so `#### 18`,
    `$1,234.50` and `The answer is 18.` read as expected. Where readings compete:

    - a sign counts unless a digit, a letter or `)` stands before it: `5-3` ends in 3,
      `= -3` in -3; a dollar may stand between sign and digits: `-$3` is -3;
    - commas group only as the grammar says: `1,234` is 1234, `10,20` ends in 20,
      `12,34,567` in 34567; digits that follow a decimal point are no group:
      `0.5,100` ends in 100;
    - a bare fraction needs something other than a point before its point: `is .5` is
      0.5, `so..5` is 5; `1.2.3` ends in 2.3;
    - a number of more than 24 digits is none, and the sample is wrong.

    The answer must be a number alone, as for `number`. Unfinished samples count too.
    Args and Returns are those of `number`.
    """
    check.kind("table", table, TokenBytes, "token_bytes(tokenizer)")
    check.raw_bytes("after", after)
    if max_bytes is not None:
        check.count("max_bytes", max_bytes)

    def judge(text, answer, finished):
        begin = _begin(text, after)
        return _equal(_last(text, begin), _only(answer, 0)) & (begin >= 0)

    return texts.judged(table, judge, max_bytes=max_bytes)


def _begin(text: Text, after: bytes) -> jax.Array:
    """i32[]: the first byte to read; -1 if `after` is wanted and does not occur."""
    if not after:
        return jnp.zeros((), jnp.int32)
    found = texts.find(text, after)
    return jnp.where(found < 0, -1, found + len(after))


def _last(text: Text, begin) -> Numeral:
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    digit = _is_digit(text.bytes) & (index >= begin)
    return _ending_at(text, begin, jnp.max(jnp.where(digit, index, -1)))


def _only(text: Text, begin) -> Numeral:
    """The number that the text from `begin` on is, whitespace around it ignored."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    ink = ~_is_in(text.bytes, texts.WHITESPACE)
    ink &= (index >= begin) & (index < text.length)
    first = jnp.min(jnp.where(ink, index, text.bytes.size))
    numeral = _ending_at(text, begin, jnp.max(jnp.where(ink, index, -1)))
    return numeral._replace(valid=numeral.valid & (numeral.start == first))


def _ending_at(text: Text, begin, end) -> Numeral:
    """The longest number whose last digit is byte `end`; invalid if that is no digit.

    Read backwards, a number has a rigid form: digits to the point, then either plain
    digits or threes with commas. So a window of fixed size before `end` decides.
    """
    index = end - jnp.arange(_WINDOW, dtype=jnp.int32)
    back = jnp.where(index >= begin, _take(text.bytes, index), 0)  # [i]: i before `end`

    run = _leading(_is_digit(back))
    maybe_point, earlier = _take(back, run + jnp.arange(2, dtype=jnp.int32))
    point = maybe_point == ord(".")
    fraction = point & _is_digit(earlier)
    bare = point & ~fraction & (earlier != ord("."))
    pointed = fraction | bare
    skip = jnp.where(pointed, run + 1, 0)  # to the last digit of the whole part
    byte, place, span = _whole_part(back, skip)
    span = jnp.where(bare, 0, span)
    whole = _is_digit(byte) & (jnp.arange(byte.size, dtype=jnp.int32) < span)

    size = skip + span  # bytes from the first digit or point to `end`
    dollar = _take(back, size) == ord("$")
    mark = size + dollar.astype(jnp.int32)
    sign, earlier = _take(back, mark + jnp.arange(2, dtype=jnp.int32))
    signed = _is_in(sign, b"+-") & ~_binds(earlier)
    start = end - jnp.where(signed, mark, size - 1)

    offset = jnp.arange(MAX_DIGITS, dtype=jnp.int32)
    fractional = pointed & (offset < run)
    parts = (
        _limbs(byte, place, whole),
        _limbs(back[:MAX_DIGITS], MAX_DIGITS - run + offset, fractional),
    )
    num_digits = jnp.sum(whole, dtype=jnp.int32) + jnp.where(pointed, run, 0)
    return Numeral(
        valid=(end >= 0) & _is_digit(back[0]) & (num_digits <= MAX_DIGITS),
        start=jnp.where(signed & dollar, -1, start),  # no whole text has a dollar in it
        negative=signed & (sign == ord("-")),
        limbs=jnp.stack(parts),
    )


def _whole_part(back, skip):
    """The bytes backwards from `skip`, their decimal places, and how many are in it.

    Backwards, grouped digits fall into rows of four: three digits and a comma. Row k
    joins row k+1 if it is full and has its comma, and row k+1 begins with 1 to 3 digits
    that do not follow a decimal point. With more than 8 rows it has too many digits.
    """
    offset = np.arange(_ROWS * 4 + 1, dtype=np.int32)
    byte = _take(back, skip + offset)
    decimal = ((byte[:-1] == ord(".")) & _is_digit(byte[1:])).reshape(_ROWS, 4)
    byte, offset = byte[:-1], offset[:-1]
    digit = _is_digit(byte)

    lead = _leading(digit.reshape(_ROWS, 4))
    after_lead = lead[:, None] == offset[None, :4]
    after_point = jnp.any(decimal & after_lead, axis=-1)
    opens = (lead >= 1) & (lead <= 3) & ~after_point
    full = (lead == 3) & (byte.reshape(_ROWS, 4)[:, 3] == ord(","))
    joins = _leading(full[:-1] & opens[1:])

    grouped = joins > 0
    span = jnp.where(grouped, 4 * joins + _take(lead, joins), _leading(digit))
    return byte, jnp.where(grouped, offset - offset // 4, offset), span


def _limbs(byte, place, mask):
    """i32[3]: the digits under the mask at their decimal places 0..23, 8 to a limb."""
    value = byte.astype(jnp.int32) - ord("0")
    value *= _take(jnp.asarray(_POWERS), place % _LIMB)
    limb = jnp.arange(MAX_DIGITS // _LIMB, dtype=jnp.int32)
    here = (place // _LIMB)[:, None] == limb[None]
    return jnp.sum(jnp.where(here & mask[:, None], value[:, None], 0), axis=0)


def _equal(a: Numeral, b: Numeral) -> jax.Array:
    zero = jnp.all(a.limbs == 0)
    same = jnp.all(a.limbs == b.limbs) & ((a.negative == b.negative) | zero)
    return a.valid & b.valid & same


def _take(array, index):
    """array[index], the index clipped to what there is."""
    return array.at[index].get(mode="clip", wrap_negative_indices=False)


def _leading(flags) -> jax.Array:
    """i32[...]: how many of the last axis hold before the first that does not."""
    index = jnp.arange(flags.shape[-1], dtype=jnp.int32)
    fails = jnp.where(flags, index.size, jnp.broadcast_to(index, flags.shape))
    return jnp.min(fails, axis=-1)


def _is_digit(byte):
    return (byte >= ord("0")) & (byte <= ord("9"))


def _is_in(byte, members: bytes):
    found = byte == members[0]
    for member in members[1:]:
        found |= byte == member
    return found


def _binds(byte):
    """Whether a sign after this byte is an operator: after a digit, a letter or `)`."""
    lower = byte | 0x20
    letter = (lower >= ord("a")) & (lower <= ord("z"))
    return _is_digit(byte) | letter | (byte == ord(")"))
