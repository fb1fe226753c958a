"""Exact matches and needles, graph against host."""

import jax
import numpy as np
import pytest
import twin
import verify_fakes
from hypothesis import given
from hypothesis import strategies as st

from rljax.verify import contains, exact, token_bytes

pytestmark = pytest.mark.usefixtures("strict")
BYTES = verify_fakes.BYTES
TOKENIZERS = verify_fakes.tokenizers()


def exactly(texts, answer, **arguments):
    some, prompts = verify_fakes.saying([texts]), verify_fakes.asking([answer])
    return verify_fakes.assert_twins_agree(
        jax.jit(exact(BYTES, **arguments)),
        twin.exact(BYTES, **arguments),
        prompts,
        some,
    ).tolist()[0]


def test_whitespace_around_text_and_answer_is_ignored():
    texts = [b"a b", b" a b\n", b"ab", b"a  b", b"a bc", b"a", b"", b"\va b\f"]
    want = [True, True, False, False, False, False, False, True]
    assert exactly(texts, "a b") == want
    assert exactly(texts, "\ta b ") == want


def test_what_is_stripped_can_be_chosen():
    texts = [b"ab", b" ab", b".ab", b"ab."]
    assert exactly(texts, "ab", strip=b"") == [True, False, False, False]
    assert exactly(texts, "ab", strip=b".") == [True, False, True, True]


def test_an_empty_answer_wants_an_empty_text():
    assert exactly([b"", b" ", b"a"], "") == [True, True, False]


def test_a_zero_byte_in_the_text_is_no_end():
    # Reading padding as text, or text as padding, would make both right.
    assert exactly([b"ab\0", b"ab\0c", b"ab"], "ab") == [False, False, True]


def test_text_and_answer_may_have_any_width():
    # Answer wider than all texts, and the other way round.
    assert exactly([b"a"], "a much longer answer") == [False]
    assert exactly([b"a much longer text", b"a"], "a") == [False, True]


def test_an_unfinished_or_too_long_text_is_not_exact():
    some, prompts = verify_fakes.saying([[b"ab", b"ab"]]), verify_fakes.asking(["ab"])
    some = some.replace(finished=np.array([[False, True]]))
    correct = verify_fakes.assert_twins_agree(
        jax.jit(exact(BYTES)), twin.exact(BYTES), prompts, some
    )
    assert correct.tolist() == [[False, True]]
    assert exactly([b"ab", b"ab "], "ab", max_bytes=2) == [True, False]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name != "byte-level"))
        for name in TOKENIZERS
    ],
)
def test_graph_and_host_agree_on_a_damaged_corpus(name):
    tokenizer = TOKENIZERS[name]
    table = token_bytes(tokenizer)
    prompts, some = verify_fakes.corpus(
        tokenizer, num_prompts=150, num_samples=20, num_tokens=36, seed=1
    )
    pairs = (
        (jax.jit(exact(table)), twin.exact(table)),
        (jax.jit(contains(table, b".5")), twin.contains(table, b".5")),
    )
    for verify, twin_verify in pairs:
        correct = verify_fakes.assert_twins_agree(verify, twin_verify, prompts, some)
        assert 0.01 < correct.mean() < 0.9


_EXACT = jax.jit(exact(BYTES)), twin.exact(BYTES)
_CONTAINS = jax.jit(contains(BYTES, b"ab")), twin.contains(BYTES, b"ab")


@given(st.lists(st.text("ab \0\n", max_size=8), min_size=8, max_size=8))
def test_graph_and_host_agree_on_any_text(texts):
    answers = np.zeros((8, 8), np.uint8)
    for row, text in zip(answers, texts, strict=True):
        kept = text.partition("\0")[0].encode()
        row[: len(kept)] = list(kept)
    prompts = verify_fakes.asking(["?"] * 8).replace(data={"answer": answers})
    some = verify_fakes.saying([[t.encode() for t in texts]] * 8, num_tokens=9)
    verify_fakes.assert_twins_agree(*_EXACT, prompts, some)
    verify_fakes.assert_twins_agree(*_CONTAINS, prompts, some)


def test_compiled_or_not_the_verdict_is_the_same():
    # Here the calls are not compiled; everywhere else they are.
    some, prompts = verify_fakes.saying([[b"ab", b"a b"]]), verify_fakes.asking(["ab"])
    for verify, twin_verify in (
        (exact(BYTES), _EXACT[1]),
        (contains(BYTES, b"ab"), _CONTAINS[1]),
    ):
        verify_fakes.assert_twins_agree(verify, twin_verify, prompts, some)


def test_a_needle_is_found_anywhere_and_needs_no_answer():
    texts = [b"wait", b"oh wait.", b"wa it", b"", b"wai", b"waiwait"]
    some = verify_fakes.saying([texts])
    prompts = verify_fakes.asking([""]).replace(data={})
    correct = verify_fakes.assert_twins_agree(
        jax.jit(contains(BYTES, b"wait")), twin.contains(BYTES, b"wait"), prompts, some
    )
    assert correct.tolist() == [[True, True, False, False, False, True]]


def test_a_needle_behind_the_bound_counts_for_nothing():
    some, prompts = verify_fakes.saying([[b"abc"]]), verify_fakes.asking([""])
    for bound, want in ((3, True), (2, False)):
        correct = verify_fakes.assert_twins_agree(
            jax.jit(contains(BYTES, b"ab", max_bytes=bound)),
            twin.contains(BYTES, b"ab", max_bytes=bound),
            prompts,
            some,
        )
        assert correct.tolist() == [[want]]


def test_an_empty_needle_raises():
    with pytest.raises(ValueError, match="at least one byte"):
        contains(BYTES, b"")
