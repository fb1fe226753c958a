"""Weights that go from files straight to the devices that hold them."""

import tracemalloc

import jax
import numpy as np
import pytest
from hugging_face_folders import small_params

from rljax import mesh
from rljax.model import DecoderConfig, hugging_face

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


def loaded(folder, **sizes):
    """The parameters on a mesh, and the most that the host held meanwhile, bytes."""
    with mesh.using(mesh.make(**sizes) if sizes else None):
        hugging_face.load(folder)  # what the first call imports and traces
        tracemalloc.start()
        _, params = hugging_face.load(folder)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return params, peak


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"fsdp": 2, "tensor": 4}, {"data": 8}])
def test_the_host_holds_a_shard_and_a_slice_of_a_tensor(wide, sizes):
    folder, want = wide
    got, peak = loaded(folder, **sizes)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    parts = [
        part.data.nbytes for x in jax.tree.leaves(got) for part in x.addressable_shards
    ]
    # Whole parameters on their way would be 4 MiB of an embedding or of 4 layers, and
    # all parts of one at once as much.
    largest = max(parts)
    tensor = 4 * CONFIG.vocab_size * CONFIG.d_model
    assert peak <= min(1.2 * tensor, 1.2 * largest + 2**18) + largest


def test_loading_compiles_nothing(wide, compilations):
    folder, _ = wide
    loaded(folder, fsdp=8)
    loaded(folder)
    assert compilations == []


def test_a_run_may_donate_loaded_parameters(wide):
    # Where they share memory with the host, a donated buffer is copied, or worse.
    folder, want = wide
    got, _ = loaded(folder)
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(got)]
    moved = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(got)
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(moved)} == {*places}
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y + 1), moved, want)
