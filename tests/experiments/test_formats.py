"""The flags of number formats: what they make of a model, its optimiser, its folder."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest
from hugging_face_folders import small_params
from safetensors.numpy import load_file, save_file

from experiments import formats, optimizer, ranges, train
from rljax.data import tokenizer
from rljax.learn import master_weights
from rljax.model import DecoderConfig, hugging_face

CONFIG = DecoderConfig(
    vocab_size=20,
    num_layers=2,
    d_model=128,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    d_ff=256,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of bfloat16 weights, as most published ones are."""
    path = tmp_path_factory.mktemp("formats") / "model"
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), small_params(CONFIG))
    words = tokenizer.character_tokenizer("0123456789+=")
    hugging_face.save(path, CONFIG, params, tokenizer=words)
    return path


def config(folder, **changes):
    return train.Config(model=folder, data=folder / "x.jsonl", **changes)


def dtypes(tree):
    return {x.dtype.name for x in jax.tree.leaves(tree)}


def test_a_pretrained_model_computes_its_layers_again_unless_refused(folder):
    made = formats.load(config(folder)).config
    assert made.remat and made.layers_per_group == 1
    kept = formats.load(config(folder, remat="none")).config
    assert not kept.remat and kept.layers_per_group == 2
    assert formats.load(config(folder, unroll=2)).config.layers_per_group == 2
    words = tokenizer.character_tokenizer("0")
    assert not formats.new(train.Config(), CONFIG, words).config.remat


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_formats_reach_activations_parameters_and_shapes(folder, name):
    model = formats.load(config(folder, dtype=name, param_dtype=name))
    assert model.config.dtype == name
    assert dtypes(model.shapes()) == {name} == dtypes(model.init(jax.random.key(0)))
    words = tokenizer.character_tokenizer("0")
    new = formats.new(train.Config(param_dtype=name), CONFIG, words)
    assert dtypes(new.shapes()) == {name} == dtypes(new.init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("asked", "want"), [(None, "bfloat16"), ("float32", "float32")]
)
def test_a_folder_comes_back_as_it_was_unless_asked_otherwise(
    folder, tmp_path, asked, want
):
    # A float32 folder of a bfloat16 one would be twice as large.
    model = formats.load(config(folder, save_dtype=asked))
    model.save(tmp_path / "policy", model.init(jax.random.key(0)))
    said = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert said["dtype"] == want
    _, back = hugging_face.load(tmp_path / "policy")
    _, first = hugging_face.load(folder)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), back, first))


def test_a_folder_that_names_no_dtype_comes_back_in_that_of_its_tensors(
    folder, tmp_path
):
    silent = tmp_path / "silent"
    shutil.copytree(folder, silent)
    entries = json.loads((silent / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        del entries[key]
    (silent / "config.json").write_text(json.dumps(entries))
    assert formats.load(config(silent)).save_dtype == "bfloat16"
    # Of several none is that of all.
    file = silent / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype("float32")
    save_file(tensors, file)
    assert formats.load(config(silent)).save_dtype is None


def state_of(name, mu_dtype, params):
    made = optimizer.BY_NAME[name](lambda step: 1e-3, 1.0, mu_dtype)
    wrapped = master_weights.master_weights(made)
    return jax.eval_shape(wrapped.init, params)


@pytest.mark.parametrize("mu_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_the_first_moment_has_the_format_asked_for(folder, name, mu_dtype):
    params = formats.load(config(folder)).shapes()
    found = jax.tree.leaves(state_of(name, mu_dtype, params))
    narrow = sum(x.size for x in found if x.dtype == jnp.bfloat16)
    size = sum(x.size for x in jax.tree.leaves(params))
    assert narrow == (size if mu_dtype == "bfloat16" else 0)


def test_adafactor_holds_little_beside_the_first_moment(folder):
    # 2 x 128 x 256 as 2 x (128 + 256): a second moment in full would double it.
    params = formats.load(config(folder)).shapes()
    size = sum(x.size for x in jax.tree.leaves(params))
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(state_of(name, "float32", params)))
        for name in optimizer.BY_NAME
    }
    assert sizes["adamw"] >= 2 * size and sizes["adafactor"] < 1.2 * size


def test_bfloat16_parameters_have_float32_copies_and_moments(folder):
    params = formats.load(config(folder, param_dtype="bfloat16")).shapes()
    state = state_of("adamw", "float32", params)
    assert dtypes(state.masters) == {"float32"}
    assert dtypes(state.inner) <= {"float32", "int32"}


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_an_optimiser_goes_down(name):
    made = optimizer.BY_NAME[name](lambda step: 0.05, 1.0, "float32")
    params = {"w": jnp.ones((2, 3))}
    state = made.init(params)
    for _ in range(30):
        updates, state = made.update(params, state, params)  # of |w|^2 / 2
        params = jax.tree.map(jnp.add, params, updates)
    assert float(jnp.max(jnp.abs(params["w"]))) < 0.5


@pytest.mark.parametrize(
    "wrong", [{"dtype": "float16"}, {"remat": "all"}, {"optimizer": "sgd"}]
)
def test_formats_that_are_none_are_refused_with_those_that_are(wrong):
    with pytest.raises(ValueError, match=r"must be one of .*got"):
        ranges.require(train.Config(**wrong))
