"""Whether a number in a text stands alone, or is a part of something larger.

`numeral` defines which text is a number; this file defines what may stand beside it.
Bytes have classes:

    space     blank, tab, `:`, and the gap that tokens without text leave
    edge      line breaks, `=`, `<`, `>`, and the ends of the text
    opening   " ' ` ( [ $ # **  and  \\( \\[ \\$ \\%
    closing   " ' ` ) ] $ % . , ; ? **  and  \\) \\] \\$ \\%
    letter    a-z, A-Z

A number stands alone if this comes on each side, read away from the number:

    left   opening*, a space or an edge, (opening | closing | space)*, an edge or a word
    right  closing*, a space or an edge, (opening | closing | space)*, an edge or a word

A word is a run of letters. It does not count as a word if it is a LaTeX command
(`\\times 10`), if it turns its neighbour into another number (`minus 5`, `5 million`,
`3 to 5`), or if `(` or `[` follows it, as it then names a function. Anything else on a
side (an operator, a brace, a further digit, a character beyond ASCII) makes the number
a part of something larger: `1/2`, `10 000`, `x^2`, `f(2)`, `3, 5`, `5!`. Two numbers
with nothing but such marks between them form one expression, which is not a number.

Two or more asterisks together are bold marks, both opening and closing. A single
asterisk is a multiplication sign; so are two asterisks between whitespace.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.verify.graph.text import GAP, WHITESPACE, Text

SPACE = b" \t:" + GAP
EDGE = b"=<>\n\r\v\f"
OPENING = b"\"'`([$#"
CLOSING = b"\"'`)]$%.,;?"
ESCAPED = b"()[]$%"  # marks also with a backslash before them
WORDS_BEFORE = (b"minus", b"negative", b"plus", b"times", b"over", b"point", b"x")
WORDS_BETWEEN = (b"and", b"or", b"to", b"by")  # before a number, but after a digit
WORDS_AFTER = (
    *(b"hundred", b"thousand", b"million", b"billion", b"trillion", b"dozen"),
    *(b"hundreds", b"thousands", b"millions", b"billions", b"trillions", b"dozens"),
    *(b"plus", b"minus", b"times", b"x", b"divided", b"over", b"point"),
    *(b"squared", b"cubed", b"factorial", b"and", b"or", b"to", b"by"),
)
_LONGEST = 1 + max(len(word) for word in WORDS_BEFORE + WORDS_AFTER)
_MARK = ord("'")  # replaces marks of more than one byte, as it opens and closes


class Marks(NamedTuple):
    """The bytes of one text, from byte `begin` on, by class.

    bytes: u8[N], where `'` replaces bold asterisks and escaping backslashes.
    begin, length: i32[].
    space, edge, opening, closing, letter: bool[N].
    """

    bytes: jax.Array
    begin: jax.Array
    length: jax.Array
    space: jax.Array
    edge: jax.Array
    opening: jax.Array
    closing: jax.Array
    letter: jax.Array

    def before(self, place, passed) -> jax.Array:
        """i32[]: last position before `place` that is not `passed`, or begin - 1."""
        index = jnp.arange(self.bytes.size, dtype=jnp.int32)
        stop = ~passed & (index < place) & (index >= self.begin)
        return jnp.max(jnp.where(stop, index, self.begin - 1))

    def beyond(self, place, passed) -> jax.Array:
        """i32[]: first position from `place` on that is not `passed`, or length."""
        index = jnp.arange(self.bytes.size, dtype=jnp.int32)
        stop = ~passed & (index >= place) & (index < self.length)
        return jnp.min(jnp.where(stop, index, self.length))


def marks(text: Text, begin) -> Marks:
    """The classes of the bytes of one text."""
    index = jnp.arange(text.bytes.size, dtype=jnp.int32)
    byte = jnp.where((index >= begin) & (index < text.length), text.bytes, ord(" "))
    blank = is_in(byte, WHITESPACE + GAP)
    star = byte == ord("*")
    double = star & _next(star, 1) & ~(_next(blank, -1, True) & _next(blank, 2, True))
    escape = (byte == ord("\\")) & is_in(_next(byte, 1), ESCAPED)
    byte = jnp.where(escape | double | _next(double, -1), _MARK, byte)
    return Marks(
        bytes=byte,
        begin=begin,
        length=text.length,
        space=is_in(byte, SPACE),
        edge=is_in(byte, EDGE),
        opening=is_in(byte, OPENING),
        closing=is_in(byte, CLOSING),
        letter=_is_letter(byte),
    )


def alone(some: Marks, left, right, finished) -> jax.Array:
    """bool[]: whether bytes left..right-1 stand alone, as defined in this file.

    The end of an unfinished text is not an edge, because more text would have followed.
    """
    return _left_is_free(some, left) & _right_is_free(some, right, finished)


def _left_is_free(some: Marks, left) -> jax.Array:
    near = some.before(left, some.opening)
    separate = (near < some.begin) | take(some.space | some.edge, near)
    far = some.before(near + 1, some.opening | some.closing | some.space)
    ends = (far < some.begin) | take(some.edge, far)
    return separate & (ends | (take(some.letter, far) & _is_word_before(some, far)))


def _is_word_before(some: Marks, last) -> jax.Array:
    """Whether the letters that end at byte `last` count as a word left of a number."""
    before = some.before(last + 1, some.letter)
    function = is_in(take(some.bytes, last + 1), b"([")
    command = (before >= some.begin) & (take(some.bytes, before) == ord("\\"))
    other = _is_one_of(some, before + 1, last + 1, WORDS_BEFORE)
    earlier = some.before(before + 1, some.opening | some.closing | some.space)
    after_digit = (earlier >= some.begin) & is_digit(take(some.bytes, earlier))
    joins = after_digit & _is_one_of(some, before + 1, last + 1, WORDS_BETWEEN)
    return ~(function | command | other | joins)


def _right_is_free(some: Marks, right, finished) -> jax.Array:
    near = some.beyond(right, some.closing)
    separate = (near >= some.length) | take(some.space | some.edge, near)
    far = some.beyond(near, some.opening | some.closing | some.space)
    after = some.beyond(far, some.letter)
    is_whole = finished | (after < some.length)
    is_word = is_whole & ~_is_one_of(some, far, after, WORDS_AFTER)
    ends = take(some.edge, far) | (take(some.letter, far) & is_word)
    return separate & jnp.where(far >= some.length, finished, ends)


def _is_one_of(some: Marks, start, end, words) -> jax.Array:
    """Whether bytes start..end-1 are one of the words, ignoring case."""
    index = start + jnp.arange(_LONGEST, dtype=jnp.int32)
    said = jnp.where(index < end, take(some.bytes, index) | 0x20, 0)
    table = np.array([list(word.ljust(_LONGEST, b"\0")) for word in words], np.uint8)
    return jnp.any(jnp.all(said[None] == table, axis=-1))


def take(array, index):
    """array[index], with the index clipped to the array."""
    return array.at[index].get(mode="clip", wrap_negative_indices=False)


def is_in(byte, members: bytes):
    """Whether each byte is one of these."""
    found = byte == members[0]
    for member in members[1:]:
        found |= byte == member
    return found


def is_digit(byte):
    """Whether each byte is one of 0-9."""
    return (byte >= ord("0")) & (byte <= ord("9"))


def _is_letter(byte):
    lower = byte | 0x20
    return (lower >= ord("a")) & (lower <= ord("z"))


def _next(array, by: int, fill=0):
    """array[i + by] at index i, and `fill` beyond the ends."""
    edge = jnp.full(abs(by), fill, array.dtype)
    inner = (array[by:], edge) if by > 0 else (edge, array[:by])
    return jnp.concatenate(inner)
