"""Where bytes are meant, a `str` raises: it would be found in no completion."""

import jax.numpy as jnp
import pytest
import verify_fakes

from rljax import verify

BYTES = verify_fakes.BYTES
TEXT = verify.Text(jnp.zeros(8, jnp.uint8), jnp.int32(0))
CALLS = {
    "number": lambda module: module.number(BYTES, after="="),
    "last_number": lambda module: module.last_number(BYTES, after="="),
    "number_after": lambda module: module.number_after(BYTES, "####"),
    "contains": lambda module: module.contains(BYTES, "1"),
    "exact": lambda module: module.exact(BYTES, strip=" "),
}


@pytest.mark.parametrize("module", [verify, verify.twin], ids=["graph", "host"])
@pytest.mark.parametrize("name", CALLS)
def test_a_str_raises_when_the_verifier_is_made(module, name):
    with pytest.raises(ValueError, match=r"must be bytes, got '.*', a str; write b"):
        CALLS[name](module)


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
    for module in (verify, verify.twin):
        with pytest.raises(ValueError, match="at least one byte"):
            module.number_after(BYTES, b"")


@pytest.mark.parametrize("make", [verify.number, verify.exact, verify.last_number])
def test_a_table_that_is_none_and_a_bound_out_of_range_raise(make):
    with pytest.raises(ValueError, match=r"a TokenBytes, got tuple; pass token_bytes"):
        make(BYTES.pieces)
    for bound in (0, -1, 2.5, "8", float("nan")):
        with pytest.raises(ValueError, match="max_bytes must be a whole number"):
            make(BYTES, max_bytes=bound)
    with pytest.raises(ValueError, match="max_bytes must be a whole number"):
        verify.contains(BYTES, b"1", max_bytes=0)
