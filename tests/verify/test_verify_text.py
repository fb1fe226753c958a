"""Decoding in the graph, and verifiers built from a judge of one text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import verify_fakes
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax.verify import (
    Text,
    TokenBytes,
    answers,
    decode,
    decode_host,
    find,
    number,
    text_verifier,
    token_bytes,
)
from rljax.verify.graph.text import answers_host

pytestmark = pytest.mark.usefixtures("strict")
TABLE = TokenBytes((b"", b"a", b"bcd", b"\0e"))
TOKENIZERS = verify_fakes.tokenizers()


def strings(text: Text) -> list[bytes]:
    rows = np.asarray(text.bytes).reshape(-1, text.bytes.shape[-1])
    lengths = np.asarray(text.length).ravel()
    return [row[:n].tobytes() for row, n in zip(rows, lengths, strict=True)]


def text_of(value: bytes, size: int) -> Text:
    padded = np.frombuffer(value.ljust(size, b"\0"), np.uint8)
    return Text(jnp.asarray(padded), jnp.int32(len(value)))


def test_decoding_closes_holes_and_pads_with_zeros():
    tokens = jnp.array([[2, 1, 3, 2], [1, 0, 1, 2]], jnp.int32)
    mask = jnp.array([[True, False, True, True], [True, True, True, False]])
    text = decode(TABLE, tokens, mask)
    assert text.bytes.shape == (2, 4 * 3)
    assert strings(text) == [b"bcd\0ebcd", b"aa"]  # a zero byte in the text is text
    assert not np.any(np.asarray(text.bytes[1, 2:]))
    assert bool(jnp.all(text.fits))


def test_ids_outside_the_table_add_nothing():
    # Clipped indexing would read -1 and 9 as the last token.
    tokens = jnp.array([[-1, 1, 4, 9]], jnp.int32)
    assert strings(decode(TABLE, tokens, jnp.ones((1, 4), bool))) == [b"a"]


def test_an_empty_mask_is_an_empty_text():
    text = decode(TABLE, jnp.full((2, 3), 2, jnp.int32), jnp.zeros((2, 3), bool))
    assert strings(text) == [b"", b""]
    assert not np.any(np.asarray(text.bytes))


def test_a_bound_cuts_bytes_but_keeps_the_length():
    tokens = jnp.full((1, 3), 2, jnp.int32)
    text = decode(TABLE, tokens, jnp.ones((1, 3), bool), max_bytes=7)
    assert np.asarray(text.bytes).tobytes() == b"bcdbcdb"
    assert text.length.tolist() == [9] and text.fits.tolist() == [False]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_graph_and_host_decode_the_same_bytes(name):
    table = token_bytes(TOKENIZERS[name])
    draw = np.random.default_rng(0)
    shape = (40, 25, 9)
    tokens = draw.integers(-2, len(table.pieces) + 3, shape).astype(np.int32)
    mask = draw.random(shape) < draw.random((40, 25, 1))  # from empty to full
    got = jax.jit(lambda t, m: decode(table, t, m))(tokens, mask)
    assert got.bytes.shape == (40, 25, 9 * table.longest)
    assert strings(got) == decode_host(table, tokens, mask)
    eager = decode(table, jnp.asarray(tokens[:2]), jnp.asarray(mask[:2]))
    assert strings(eager) == strings(got)[:50]


def test_decoding_wrong_shapes_raises():
    with pytest.raises(ValueError, match="one shape"):
        decode(TABLE, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 4), bool))
    with pytest.raises(ValueError, match="max_bytes >= 1"):
        decode(TABLE, jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3), bool), max_bytes=0)


def test_answers_end_at_the_first_zero_byte():
    prompts = verify_fakes.asking(["12", "1", "é"])
    prompts.data["answer"] = prompts.data["answer"].at[1].set(jnp.array([49, 0], "u1"))
    assert strings(answers(prompts)) == [b"12", b"1", "é".encode()]
    assert answers_host(prompts) == strings(answers(prompts))


def test_prompts_without_answers_raise():
    prompts = verify_fakes.asking(["1"])
    with pytest.raises(ValueError, match=r"prompts\.data must hold 'answer'"):
        answers(prompts.replace(data={"question": jnp.zeros((1, 1))}))
    with pytest.raises(ValueError, match="must be u8"):
        answers(prompts.replace(data={"answer": jnp.zeros((1, 1), jnp.int32)}))


def test_find_gives_the_first_place():
    text = text_of(b"a=b==", 8)
    assert int(find(text, b"=")) == 1
    assert int(find(text, b"==")) == 3
    assert int(find(text, b"a=b==")) == 0
    assert int(find(text, b"c")) == -1


def test_find_does_not_read_past_the_end():
    # The padding is zero bytes; so is this needle.
    assert int(find(text_of(b"ab", 8), b"\0")) == -1
    assert int(find(text_of(b"a\0b", 8), b"\0b")) == 1


def test_what_can_never_be_found_raises():
    with pytest.raises(ValueError, match="must have 1 to 4 bytes"):
        find(text_of(b"ab", 4), b"abcde")
    with pytest.raises(ValueError, match="must have 1 to 4 bytes"):
        find(text_of(b"ab", 4), b"")


def test_a_judge_of_one_sample_makes_a_verifier_of_all():
    def as_long_as_the_answer(text, answer, finished):
        return finished & (text.length == answer.length)

    verify = text_verifier(verify_fakes.BYTES, as_long_as_the_answer, max_bytes=4)
    some = verify_fakes.saying([[b"ab", b"abc"], [b"abc", b"abcde"]])
    verdict = jax.jit(verify)(verify_fakes.asking(["12", "12345"]), some)
    # The last is as long as its answer, but longer than four bytes.
    assert verdict.correct.tolist() == [[True, False], [False, False]]
    assert verdict.reward.dtype == jnp.float32


def test_verifying_on_a_mesh_needs_no_communication():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    prompts = verify_fakes.asking([str(i) for i in range(16)])
    some = verify_fakes.saying([[b"1=1", b"1=2"]] * 16)
    prompts, some = jax.device_put((prompts, some), rows)
    compiled = jax.jit(number(verify_fakes.BYTES, after=b"=")).lower(prompts, some)
    program = compiled.compile().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program
