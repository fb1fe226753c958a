"""Where bytes are meant, a `str` raises: it would be found in no completion."""

import jax.numpy as jnp
import pytest
import verify_fakes

from rljax import verify

BYTES = verify_fakes.BYTES
TEXT = verify.Text(jnp.zeros(8, jnp.uint8), jnp.int32(0))
CALLS = {
    "number": lambda: verify.number(BYTES, after="="),
    "last_number": lambda: verify.last_number(BYTES, after="="),
    "number_after": lambda: verify.number_after(BYTES, "####"),
    "contains": lambda: verify.contains(BYTES, "1"),
    "exact": lambda: verify.exact(BYTES, strip=" "),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_str_raises_when_the_verifier_is_made(name):
    with pytest.raises(ValueError, match=r"must be bytes, got '.*' \(str\); pass b'"):
        CALLS[name]()


def test_a_str_raises_in_the_parts_of_verifiers():
    for call in (
        lambda: verify.find(TEXT, "="),
        lambda: verify.find_last(TEXT, "="),
        lambda: verify.decode(BYTES, jnp.zeros(2, int), jnp.ones(2, bool), gap="|"),
        lambda: verify.TokenBytes((b"a", "b")),
    ):
        with pytest.raises(ValueError, match="must be bytes"):
            call()


@pytest.mark.parametrize("value", [None, 61, [61], bytearray(b"=")])
def test_so_does_anything_else(value):
    with pytest.raises(ValueError, match="after must be bytes"):
        verify.number(BYTES, after=value)


def test_an_empty_marker_raises():
    with pytest.raises(ValueError, match="marker must have at least one byte"):
        verify.number_after(BYTES, b"")


@pytest.mark.parametrize("make", [verify.number, verify.exact, verify.last_number])
def test_a_table_that_is_none_and_a_bound_out_of_range_raise(make):
    with pytest.raises(ValueError, match="table must be a TokenBytes"):
        make(BYTES.pieces)
    for bound in (0, -1, 2.5, "8", float("nan")):
        with pytest.raises(ValueError, match="max_bytes must"):
            make(BYTES, max_bytes=bound)
    with pytest.raises(ValueError, match="max_bytes must"):
        verify.contains(BYTES, b"1", max_bytes=0)
