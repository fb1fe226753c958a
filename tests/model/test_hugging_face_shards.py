"""Weights that go from files straight to the devices that hold them."""

import contextlib
import tracemalloc

import jax
import numpy as np
import pytest
from hugging_face_folders import small_params

from rljax import mesh
from rljax.model import DecoderConfig, hugging_face
from rljax.model.hugging_face import family, shards, tensors, weights

CONFIG = DecoderConfig(
    vocab_size=4096,
    num_layers=4,
    d_model=256,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    d_ff=1024,
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A folder whose largest tensor, the embedding, has 4 MiB."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    params = small_params(CONFIG)
    hugging_face.save(folder, CONFIG, params)
    return folder, params


def read(folder, **sizes):
    """The parameters by path, and the most that the host held meanwhile, bytes."""
    shapes = tensors.shapes(CONFIG)
    sizes_of = tensors.by_path(shapes)
    with contextlib.ExitStack() as stack:
        kind = family.named("llama")
        parts, stored = weights.checked(folder, CONFIG, kind, stack)
        with mesh.using(mesh.make(**sizes)):
            where = dict(zip(sizes_of, mesh.stored(shapes), strict=True))
        tracemalloc.start()
        params = shards.read(sizes_of, where, parts, stored, np.dtype("float32"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return params, peak


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 8}])
def test_the_host_holds_a_shard_and_a_slice_of_a_tensor(wide, sizes):
    folder, want = wide
    got, peak = read(folder, **sizes)
    want = tensors.by_path(want)
    assert got.keys() == want.keys()
    for path, x in got.items():
        np.testing.assert_array_equal(x, want[path])
    # A shard and a slice of a file. JAX lets go of what it has copied some time later:
    # each in memory of its own would be up to all 20 MiB.
    largest = max(s.data.nbytes for x in got.values() for s in x.addressable_shards)
    tensor = 4 * CONFIG.vocab_size * CONFIG.d_model
    assert peak <= 1.2 * tensor + largest
    assert peak <= 2.2 * largest + 2**18


def test_loading_compiles_nothing(wide, compilations):
    folder, want = wide
    for devices in (None, mesh.make(fsdp=8)):
        with mesh.using(devices):
            _, got = hugging_face.load(folder)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert compilations == []
