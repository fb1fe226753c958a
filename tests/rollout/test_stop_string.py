"""Stop strings: where a completion ends is where a plain search of its text ends."""

import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stop_case
from hypothesis import strategies as st
from stop_case import COMMON, ENDS, KEY, PARAMS, PIECES, POLICY, PROMPTS, STOP, G, T

from rljax.rollout.sample import greedy, sampler
from rljax.rollout.stop_string import stop_strings


def bytes_of(tokens, pieces=PIECES):
    """The bytes of each token; None where there are none."""
    known = [pieces[i] if 0 <= i < len(pieces) else b"" for i in tokens]
    return [piece or None for piece in known]


def ending(tokens, texts, pieces=PIECES):
    """How many tokens there are when the first stop string is complete; None: never."""
    text = b""
    for n, piece in enumerate(bytes_of(tokens, pieces), 1):
        text = b"" if piece is None else text + piece
        if any(t.encode() in text for t in texts):
            return n
    return None


@functools.cache
def jitted(texts=ENDS, num_slots=None, environment=None, stop_tokens=(STOP,)):
    stops = stop_strings(texts, PIECES) if texts else None
    options = {"stop_tokens": stop_tokens, "environment": environment, **COMMON}
    made = sampler(POLICY, stop_strings=stops, num_slots=num_slots, **options)
    return jax.jit(made)


@functools.cache
def without_any():
    """Tokens of completions that nothing ends."""
    return np.asarray(jitted(None, stop_tokens=())(PARAMS, PROMPTS, KEY)[0].tokens)


@pytest.mark.parametrize("num_slots", [None, 1, 7])
def test_completions_are_those_without_stops_up_to_where_one_ends(num_slots):
    # The state of a slot's last sample would end the next one too early.
    samples, old = jitted(num_slots=num_slots)(PARAMS, PROMPTS, KEY)
    long = without_any()
    kinds = set()
    for p, g in np.ndindex(6, G):
        found = ending(long[p, g], ENDS)
        token = next((n for n, x in enumerate(long[p, g], 1) if x == STOP), None)
        ends = [n for n in (found, token) if n is not None]
        length = min(ends, default=T)
        kinds.add((found in ends and found == length, bool(ends)))
        mask = np.arange(T) < length
        np.testing.assert_array_equal(samples.mask[p, g], mask)
        # What ends it is as sampled, and trained on.
        np.testing.assert_array_equal(samples.tokens[p, g][:length], long[p, g][mask])
        assert bool(samples.finished[p, g]) == bool(ends)
    assert kinds == {(True, True), (False, True), (False, False)}
    assert np.all((old.logp < 0) == samples.mask)


def test_all_at_once_and_in_slots_are_equal():
    wide, narrow = (jitted(num_slots=n)(PARAMS, PROMPTS, KEY) for n in (None, 4))
    bare = [(s.replace(decode_steps=None), old) for s, old in (wide, narrow)]
    chex.assert_trees_all_equal(*bare)


def test_greedy_completions_end_as_well():
    options = {"max_tokens": T, "stop_tokens": ()}
    stops = stop_strings(("c",), PIECES)
    cut = greedy(POLICY, stop_strings=stops, **options)
    samples, long = (
        jax.jit(sample)(PARAMS, PROMPTS, KEY)[0]
        for sample in (cut, greedy(POLICY, **options))
    )
    want = [ending(row, ("c",)) for row in long.tokens[:, 0].tolist()]
    assert len(set(want)) > 2
    length = [T if n is None else n for n in want]
    assert np.sum(samples.mask, -1)[:, 0].tolist() == length
    assert samples.finished[:, 0].tolist() == [n is not None for n in want]


def test_what_an_environment_says_completes_no_stop_string():
    # "ab" + forced "c" is no "abc"; with the string matched across it would be.
    ab, c = PIECES.index(b"ab"), PIECES.index(b"c")
    draw = jitted(("abc",), environment=stop_case.forcing(), stop_tokens=())
    samples, _ = draw(PARAMS, PROMPTS, KEY)
    tokens, mask = np.asarray(samples.tokens), np.asarray(samples.mask)
    said = (tokens[..., :-1] == ab) & ~mask[..., 1:] & (tokens[..., 1:] == c)
    assert said.sum() > 10
    for p, g in np.ndindex(6, G):
        length = np.flatnonzero(mask[p, g] | (tokens[p, g] > 0)).max() + 1
        own = np.where(mask[p, g], tokens[p, g], -1)[:length]
        found = ending(own, ("abc",))
        assert bool(samples.finished[p, g]) == (found is not None)
        assert found in (None, length)


def test_an_environment_may_answer_a_stop_string_and_go_on():
    # As with a stop token: what ends a turn need not end the sample.
    draw = jitted(("ab",), environment=stop_case.forcing(), stop_tokens=())
    samples, _ = draw(PARAMS, PROMPTS, KEY)
    long = jitted(None, environment=stop_case.forcing(), stop_tokens=())(
        PARAMS, PROMPTS, KEY
    )[0]
    tokens = np.asarray(samples.tokens)
    went_on = 0
    for p, g in np.ndindex(6, G):
        length = int(np.flatnonzero(tokens[p, g] > 0).max()) + 1
        np.testing.assert_array_equal(tokens[p, g][:length], long.tokens[p, g][:length])
        own = np.where(samples.mask[p, g], tokens[p, g], -1)[:length]
        went_on += (own[:-1] == PIECES.index(b"ab")).sum()
        last = bytes_of(own)[-1]
        if samples.finished[p, g]:
            assert own[-1] != PIECES.index(b"ab") and last is not None
    assert went_on > 3 and samples.finished.any()


text_of_letters = st.text("ab", min_size=1, max_size=4)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=5),
    st.lists(text_of_letters, min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_the_automaton_finds_what_a_search_of_the_text_finds(words, texts, seed):
    pieces = (b"", *(word.encode() for word in words), b"x")
    spelled = [
        any(
            text.encode() in b"".join(row)
            for n in range(1, len(text) + 1)
            for row in itertools.product(pieces[1:], repeat=n)
        )
        for text in texts
    ]
    if not all(spelled):
        unknown = texts[spelled.index(False)]
        with pytest.raises(ValueError, match=f"'{unknown}': no sequence"):
            stop_strings(texts, pieces)
        return
    stops = stop_strings(texts, pieces)
    # Ids below 0 and beyond have no text.
    draw = np.random.default_rng(seed)
    tokens = draw.integers(-1, len(pieces) + 1, (20, 8))
    state, found = np.zeros(20, np.int32), []
    for column in tokens.T:
        state = stops.after(state, jnp.asarray(column))
        found.append(np.asarray(stops.found(state)))
    for row, said in zip(tokens, np.array(found).T, strict=True):
        want = ending(row, texts, pieces)
        assert (int(np.argmax(said)) + 1 if said.any() else None) == want


def test_tokens_that_do_the_same_share_their_row():
    # 100,000 tokens x 10 states would be a table of a million entries.
    pieces = [bytes([65 + i % 20, 65 + i % 17]) for i in range(100_000)]
    stops = stop_strings(
        ("\nQuestion:", "AB"), [*pieces, *b"\nQuestion:AB".split(b"x")]
    )
    assert stops.kind.shape == (100_002,)
    assert stops.step.size < 200


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ((), "at least one"),
        ("abc", "be a tuple of texts"),
        (("",), "at least one character"),
        ((b"a",), "be a str"),
        (("a\ud800",), "surrogate"),
        (("a", "d"), "'d': no sequence of the tokenizer's tokens"),
        (("aü",), None),
    ],
)
def test_stop_strings_that_cannot_be_are_refused(texts, told):
    if told is None:
        assert stop_strings(texts, PIECES).texts == ("aü".encode(),)
        return
    with pytest.raises(ValueError, match=told):
        stop_strings(texts, PIECES)
