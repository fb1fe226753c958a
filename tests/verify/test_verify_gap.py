"""Tokens without text between two with text: what they separate is not glued."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twin
import verify_fakes
from hypothesis import given
from hypothesis import strategies as st

from rljax import verify
from rljax.verify import TokenBytes, decode, decode_host

pytestmark = pytest.mark.usefixtures("strict")
# 0: special. The others: text. 9 has no row in the table.
TABLE = TokenBytes((b"", b"1", b"8", b" ", b"is", b"####"))
SPECIAL, ONE, EIGHT, BLANK, IS, MARK, UNKNOWN = 0, 1, 2, 3, 4, 5, 9
MAKE = {
    "number": lambda module: module.number(TABLE),
    "last_number": lambda module: module.last_number(TABLE),
    "number_after": lambda module: module.number_after(TABLE, b"####"),
    "exact": lambda module: module.exact(TABLE),
    "contains": lambda module: module.contains(TABLE, b"18"),
}
VERIFIERS = {name: (jax.jit(make(verify)), make(twin)) for name, make in MAKE.items()}
NUM_ROWS, NUM_TOKENS = 3, 8


def right(name, answer, rows, holes=()):
    """Which of the rows of tokens are right; one shape, so compiled once."""
    tokens = np.zeros((1, NUM_ROWS, NUM_TOKENS), int)
    mask = np.zeros(tokens.shape, bool)
    for g, row in enumerate(rows):
        tokens[0, g, : len(row)], mask[0, g, : len(row)] = row, True
    for g, t in holes:
        mask[0, g, t] = False
    some, prompts = verify_fakes.samples(tokens, mask), verify_fakes.asking([answer])
    correct = verify_fakes.assert_twins_agree(*VERIFIERS[name], prompts, some)
    return correct[0, : len(rows)].tolist()


@pytest.mark.parametrize("name", VERIFIERS)
@pytest.mark.parametrize("between", [[SPECIAL], [UNKNOWN], [SPECIAL, -1, SPECIAL]])
def test_two_digits_with_a_token_without_text_between_are_not_one_number(name, between):
    start = [MARK, BLANK] if name == "number_after" else []
    rows = [
        [*start, ONE, *between, EIGHT],  # glued: 18
        [*start, ONE, EIGHT, *between],
        [*between, *start, ONE, EIGHT],
    ]
    assert right(name, "18", rows) == [False, True, True]
    if name != "contains":
        assert right(name, " 8", rows[:1]) == [False]  # and no piece is paid
        assert right(name, " 1", rows[:1]) == [False]


def test_such_a_token_separates_a_number_from_text_as_a_space_does():
    rows = [[IS, SPECIAL, ONE, EIGHT], [ONE, EIGHT, SPECIAL, IS], [IS, ONE, EIGHT]]
    assert right("last_number", "18", rows) == [True, True, False]
    assert right("number_after", "18", [[MARK, SPECIAL, ONE, EIGHT]]) == [True]


def test_a_hole_in_the_mask_separates_too():
    rows = [[ONE, EIGHT, EIGHT], [ONE, EIGHT, EIGHT]]
    assert right("last_number", "18", rows, holes=[(0, 1), (1, 2)]) == [False, True]


GAPPED = jax.jit(lambda tokens, mask: decode(TABLE, tokens, mask, gap=b"|"))


@given(st.lists(st.tuples(st.integers(-1, 7), st.booleans()), min_size=9, max_size=9))
def test_graph_and_host_put_the_gap_at_the_same_places(row):
    tokens, mask = (jnp.array(x)[None] for x in zip(*row, strict=True))
    text = GAPPED(tokens, mask)
    (want,) = decode_host(TABLE, tokens, mask, gap=b"|")
    assert np.asarray(text.bytes[0]).tobytes().rstrip(b"\0") == want
    assert int(text.length[0]) == len(want)
    # By another way: gaps are where pieces are, what is left of them at the ends goes.
    pieces = [
        TABLE.pieces[token] if keep and 0 <= token < 6 else b"" for token, keep in row
    ]
    marked = b"".join(piece or b"|" for piece in pieces).strip(b"|")
    while b"||" in marked:
        marked = marked.replace(b"||", b"|")
    assert want == marked


def test_a_text_with_a_gap_fits_where_the_tokens_do():
    # The default bound is tokens times the longest piece.
    ones = TokenBytes((b"", b"1"))
    decoded = jax.jit(lambda tokens, mask: decode(ones, tokens, mask, gap=b"|"))
    text = decoded(jnp.array([1, 0, 1]), jnp.ones(3, bool))
    assert np.asarray(text.bytes).tobytes() == b"1|1" and bool(text.fits)


def test_a_gap_of_more_than_a_byte_raises():
    for function in (decode, decode_host):
        with pytest.raises(ValueError, match="at most one byte"):
            function(TABLE, jnp.zeros((1, 2), int), jnp.ones((1, 2), bool), gap=b"ab")
