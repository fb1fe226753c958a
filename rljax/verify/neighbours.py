"""What may stand beside a number, so that it is no piece of something larger.

Which text is a number is said in `numeral`; here is said which number in a text stands
alone. Bytes fall into classes:

    space     blank, tab, `:`, and the gap that tokens without text leave
    edge      line breaks, `=`, `<`, `>`, and the ends of the text
    opening   " ' ` ( [ $ # **  and  \\( \\[ \\$ \\%
    closing   " ' ` ) ] $ % . , ; ? **  and  \\) \\] \\$ \\%
    letter    a-z, A-Z

and a number stands alone if, read away from it,

    on its left come  opening*, then a space or an edge, then  (opening|closing|space)*,
        then an edge or a word;
    on its right come  closing*, then a space or an edge, then the same.

A word is letters, no LaTeX command (`\\times 10`), and none of those that make another
number of it (`minus 5`, `5 million`, `3 to 5`); before `(` or `[` it is a function.
Everything else, an operator, a brace, a further digit, a character beyond ASCII, makes
the number a piece: of `1/2`, `10 000`, `x^2`, `f(2)`, `3, 5`, `5!`. Two numbers between
which only such marks stand are one thing, and that is no number.

Asterisks open and close where two or more stand together (bold), but not two between
whitespace; otherwise they multiply.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax.verify.text import GAP, WHITESPACE, Text

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
_MARK = ord("'")  # opens and closes: what stands for marks of more than one byte


class Marks(NamedTuple):
    """One text u8[N] from byte `begin` on, its bytes by class.

    bytes: u8[N] with `'` for bold asterisks and escaping backslashes.
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
        """i32[]: the last byte before `place` that is not passed; begin - 1 if none."""
        index = jnp.arange(self.bytes.size, dtype=jnp.int32)
        stop = ~passed & (index < place) & (index >= self.begin)
        return jnp.max(jnp.where(stop, index, self.begin - 1))

    def beyond(self, place, passed) -> jax.Array:
        """i32[]: the first byte from `place` on that is not passed; length if none."""
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
    """bool[]: whether bytes left..right-1 stand alone in the sense of this file.

    The end of an unfinished text is no edge: what would have followed is not known.
    """
    return _left_is_free(some, left) & _right_is_free(some, right, finished)


def _left_is_free(some: Marks, left) -> jax.Array:
    passed = some.opening | some.closing | some.space
    near = some.before(left, some.opening)
    far = some.before(near + 1, passed)
    word = some.before(far + 1, some.letter)
    plain = ~is_in(take(some.bytes, far + 1), b"([")
    plain &= (word < some.begin) | (take(some.bytes, word) != ord("\\"))
    plain &= ~_is_word(some, word + 1, far + 1, WORDS_BEFORE)
    earlier = some.before(word + 1, passed)
    after_digit = (earlier >= some.begin) & is_digit(take(some.bytes, earlier))
    plain &= ~(after_digit & _is_word(some, word + 1, far + 1, WORDS_BETWEEN))
    attached = (near < some.begin) | take(some.space | some.edge, near)
    return attached & (
        (far < some.begin) | take(some.edge, far) | (take(some.letter, far) & plain)
    )


def _right_is_free(some: Marks, right, finished) -> jax.Array:
    passed = some.opening | some.closing | some.space
    near = some.beyond(right, some.closing)
    far = some.beyond(near, passed)
    word = some.beyond(far, some.letter)
    plain = ~_is_word(some, far, word, WORDS_AFTER) & (finished | (word < some.length))
    attached = (near >= some.length) | take(some.space | some.edge, near)
    stop = take(some.edge, far) | (take(some.letter, far) & plain)
    return attached & jnp.where(far >= some.length, finished, stop)


def _is_word(some: Marks, start, end, words) -> jax.Array:
    """Whether bytes start..end-1 are one of the words, in small letters or capitals."""
    index = start + jnp.arange(_LONGEST, dtype=jnp.int32)
    said = jnp.where(index < end, take(some.bytes, index) | 0x20, 0)
    table = np.array([list(word.ljust(_LONGEST, b"\0")) for word in words], np.uint8)
    return jnp.any(jnp.all(said[None] == table, axis=-1))


def take(array, index):
    """array[index], the index clipped to what there is."""
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
    """array[i + by] at place i; beyond the ends: `fill`."""
    edge = jnp.full(abs(by), fill, array.dtype)
    inner = (array[by:], edge) if by > 0 else (edge, array[:by])
    return jnp.concatenate(inner)
