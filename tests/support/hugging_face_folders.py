"""A small decoder in a Hugging Face folder, for tests to damage."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rljax.model import DecoderConfig, decoder_policy, hugging_face

SMALL = DecoderConfig(
    vocab_size=11,
    num_layers=1,
    d_model=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    d_ff=20,
    tie_embeddings=False,
)


TRAINABLE = DecoderConfig(
    vocab_size=20,
    num_layers=1,
    d_model=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=16,
)
"""Of the folders that `experiments.train` is tried on."""


def small_params(config=SMALL):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(decoder_policy(config).init, jax.random.key(1))
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes
    )


def edit(folder, remove=(), **changes):
    file = folder / "config.json"
    entries = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in entries.items() if k not in remove}))


def edit_tensors(folder, remove=(), **changes):
    file = folder / "model.safetensors"
    tensors = {k: v for k, v in load_file(file).items() if k not in remove}
    file.unlink()  # loaded arrays may still be mapped to it
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    save_file({**tensors, **changes}, file)


def refuses(tmp_path, told, config=SMALL, params=None, **options):
    params = small_params() if params is None else params
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=told):
        hugging_face.save(tmp_path / "model", config, params, **options)
    assert sorted(tmp_path.rglob("*")) == before
