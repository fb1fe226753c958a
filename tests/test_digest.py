"""Digests change with every bit and with nothing else."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rljax import digest

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int32", "int8", "uint8")


def of(x):
    return digest.examine({"x": x})["['x']"].digest


@hypothesis.given(st.data())
def test_a_digest_changes_with_every_bit(data):
    # A sum without weights would not see a bit that moves, a float's sum the last one.
    dtype = jnp.dtype(data.draw(st.sampled_from(DTYPES)))
    raw = np.arange(24 * dtype.itemsize, dtype=np.uint8)
    before = of(raw.view(dtype).reshape(2, 3, 4))
    at = data.draw(st.integers(0, raw.size - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    assert of(raw.view(dtype).reshape(2, 3, 4)) != before


def test_a_digest_changes_with_places():
    x = jnp.arange(1.0, 13.0).reshape(3, 4)
    others = [x.T.reshape(3, 4), x[::-1], x[:, ::-1], x.reshape(2, 6), x.at[0].set(0)]
    assert len({of(x), *map(of, others)}) == 6


@pytest.mark.parametrize("dtype", ["bool", "int4", "uint4", "complex64"])
def test_other_kinds_of_numbers_have_digests_too(dtype):
    x = jnp.array([0, 1, 0, 1, 1]).astype(dtype)
    assert of(x) != of(x[::-1])
    assert of(x) == of(jnp.array(x))


def test_a_digest_is_the_same_on_every_mesh():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    specs = [("a", "b"), ("b", None), (None, "a"), (None, None)]
    shardings = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in specs]
    assert {of(jax.device_put(x, s)) for s in shardings} == {of(x)}


@pytest.mark.parametrize("rows", [1, 4, 7, 9])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_large_array_in_pieces_has_the_digest_of_the_whole(monkeypatch, rows, dtype):
    # Pieces of 2 rows that each began to count at 0 would give another sum.
    monkeypatch.setattr(digest, "_PIECE", 12)
    x = jnp.arange(rows * 6).reshape(rows, 2, 3).astype(dtype)
    for other in (x, x.at[-1, 0, 0].set(7), x[::-1]):
        assert tuple(digest._examine_array(other, False)) == tuple(
            digest._examine_array(other, True)
        )
    if dtype != "int8":
        bad = x.at[rows // 2, 1, 1].set(jnp.nan).at[0, 0, 0].set(jnp.inf)
        assert digest._examine_array(bad, False)[1:] == (True, True)


def test_arrays_on_different_devices_are_examined_together():
    one, two = jax.devices()[:2]
    x = jnp.arange(3.0)
    tree = {"a": jax.device_put(x, one), "b": jax.device_put(x, two), "free": x}
    found = digest.examine(tree)
    assert len(set(found.values())) == 1
    assert list(digest.examine({})) == []


def test_leaves_that_are_not_finite_are_named():
    tree = {
        "good": jnp.ones(3, jnp.bfloat16),
        "ids": jnp.ones(3, jnp.int32),
        "key": jax.random.key(0),
        "nan": jnp.array([0.0, jnp.nan]),
        "inf": jnp.array([-jnp.inf], jnp.bfloat16),
    }
    assert sorted(digest.not_finite(tree)) == ["['inf']", "['nan']"]
    found = digest.examine(tree)
    assert found["['inf']"][1:] == (False, True)
    assert found["['nan']"][1:] == (True, False)


def test_a_fingerprint_changes_with_order_shape_dtype_and_name():
    x = np.arange(6, dtype=np.int32)
    others = [x[::-1], x.reshape(2, 3), x.astype(np.int64), x.astype(np.uint32), x[:5]]
    prints = {digest.fingerprint({"a": y}) for y in (x, *others)}
    prints |= {digest.fingerprint({"b": x}), digest.fingerprint({"a": x, "b": x[:0]})}
    assert len(prints) == 8
    assert digest.fingerprint({"a": x.copy()}) == digest.fingerprint({"a": x})
