"""A text ends before the stop string that its last token completes, and only there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verify_fakes
from hypothesis import given
from hypothesis import strategies as st

from rljax.verify import TokenBytes, decode, decode_host, exact, number

PIECES = (b"", b"a", b"b", b"ab", b"ba", b"aab", b"bbb", b"4", b"2a")
ENDS = (b"ab", b"bb", b"aab", b"bab")
TABLE = TokenBytes(PIECES, ENDS)
DECODED = jax.jit(lambda tokens, mask: decode(TABLE, tokens, mask, gap=b"|"))
SHORT = jax.jit(lambda tokens, mask: decode(TABLE, tokens, mask, max_bytes=3))


def by_definition(pieces: list[bytes]) -> bytes:
    """The earliest complete stop string that reaches into the last piece goes."""
    text = b"".join(pieces)
    last = len(pieces[-1]) if pieces else 0
    hits = [
        (begin + len(end), begin)
        for end in ENDS
        for begin in range(len(text))
        if text.startswith(end, begin) and begin + len(end) > len(text) - last
    ]
    return text[: min(hits)[1]] if hits else text


def decoded(rows, function=DECODED):
    tokens = jnp.array(rows)
    text = function(tokens, tokens >= 0)
    return [
        bytes(row[:n])
        for row, n in zip(np.asarray(text.bytes), text.length.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("row", "want"),
    [
        ([7, 8, 2], b"42"),  # "4" "2a" "b"
        ([3, 7], b"ab4"),  # complete before the last token: a stored answer's
        ([7, 3, 0], b"4ab"),  # ended by a token without text
        ([7, 5, -1], b"4"),  # "aab" and "ab" end together: the longer one goes
        ([7, 2, 6], b"4"),  # "b" "bbb": complete with the first of its bytes
        ([0, -1, -1], b""),
        ([-1, -1, -1], b""),
    ],
)
def test_by_hand(row, want):
    row = [*row, *[-1] * (3 - len(row))]
    assert decoded([row]) == [want]
    tokens = np.array([row])
    assert decode_host(TABLE, tokens, tokens >= 0, gap=b"|") == [want]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=9))
def test_graph_host_and_definition_agree(row):
    want = by_definition([PIECES[i] for i in row])
    padded = [*row, *[-1] * (9 - len(row))]
    assert decoded([padded]) == [want]
    tokens = np.array([padded])
    assert decode_host(TABLE, tokens, tokens >= 0) == [want]
    # A buffer that the stop string would not fit into changes nothing.
    text = SHORT(*(x[None] for x in (jnp.array(padded), jnp.array(padded) >= 0)))
    assert int(text.length[0]) == len(want)
    assert bytes(np.asarray(text.bytes[0])).rstrip(b"\0") == want[:3]


@given(st.lists(st.tuples(st.integers(-1, 9), st.booleans()), min_size=9, max_size=9))
def test_graph_and_host_agree_with_gaps_and_holes(row):
    tokens, mask = (np.array(x)[None] for x in zip(*row, strict=True))
    text = DECODED(jnp.array(tokens), jnp.array(mask))
    (want,) = decode_host(TABLE, tokens, mask, gap=b"|")
    assert np.asarray(text.bytes[0]).tobytes().rstrip(b"\0") == want
    assert int(text.length[0]) == len(want)


def test_verifiers_judge_what_stands_before():
    # With the stop string in the text, "42ab" would be neither.
    tokens = jnp.array([[[7, 8, 2], [7, 8, 1]]])
    samples = verify_fakes.samples(tokens, jnp.ones(tokens.shape, bool))
    prompts = verify_fakes.asking(["42"])
    for verifier in (exact(TABLE), number(TABLE)):
        assert jax.jit(verifier)(prompts, samples).correct.tolist() == [[True, False]]


@pytest.mark.parametrize(("ends", "told"), [((b"",), "one byte"), (("a",), "bytes")])
def test_ends_that_cannot_be_are_refused(ends, told):
    with pytest.raises(ValueError, match=told):
        TokenBytes(PIECES, ends)
