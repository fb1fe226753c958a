"""A model before training: new or of a folder, and where its parameters are."""

import json

import chex
import jax
import pytest

from rljax.data import tokenizer
from rljax.model import DecoderConfig, language_model

WORDS = tokenizer.character_tokenizer("0123456789+=")
CONFIG = DecoderConfig(
    vocab_size=len(WORDS),
    num_layers=1,
    d_model=8,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    d_ff=8,
)


@pytest.fixture
def folder(tmp_path):
    made = language_model.new(CONFIG, WORDS)
    made.save(tmp_path / "model", made.init(jax.random.key(1)))
    return tmp_path / "model"


def test_a_new_model_is_drawn_by_its_key():
    made = language_model.new(CONFIG, WORDS)
    one, same, other = (made.init(jax.random.key(i)) for i in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(one, other)
    assert made.stop_tokens == (WORDS.eos_token_id,)
    chex.assert_trees_all_equal_shapes_and_dtypes(made.shapes(), one)


def test_a_folders_parameters_are_read_at_each_call_whatever_the_key(folder):
    # Kept in the model, they would lie beside those that are trained for a whole run.
    found = language_model.load(folder)
    first, second = found.init(jax.random.key(0)), found.init(jax.random.key(5))
    chex.assert_trees_all_equal(first, second)
    assert jax.tree.leaves(first)[0] is not jax.tree.leaves(second)[0]
    want = language_model.new(CONFIG, WORDS).init(jax.random.key(1))
    chex.assert_trees_all_equal(first, want)
    chex.assert_trees_all_equal_shapes_and_dtypes(found.shapes(), first)


def test_broken_weights_are_refused_before_they_are_read(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="safetensors"):
        language_model.load(folder)


def test_a_model_comes_back_with_its_folders_files(folder, tmp_path):
    found = language_model.load(folder)
    found.save(tmp_path / "again", found.init(jax.random.key(0)))
    again = language_model.load(tmp_path / "again")
    chex.assert_trees_all_equal(again.init(None), found.init(None))
    assert again.config == found.config == CONFIG
    name = "tokenizer.json"
    assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert language_model.describe(again) == "a completion ends with <end> (1)"


def test_texts_that_ended_completions_in_training_are_saved(folder, tmp_path):
    # From the folder alone they would go on: generate reads them in its own file.
    found = language_model.load(folder)._replace(stop_strings=("\n=", "use:"))
    found.save(tmp_path / "policy", found.init(None))
    file = tmp_path / "policy" / "generation_config.json"
    # Without the ids nothing else would end them: they are in this file or nowhere.
    want = {"eos_token_id": [1], "stop_strings": ["\n=", "use:"]}
    assert json.loads(file.read_text()) == want
    again = language_model.load(tmp_path / "policy")
    assert again.stop_strings == ("\n=", "use:")
    # Whose file says so already keeps it, byte by byte.
    file.write_text('{"top_p": 0.9, "stop_strings": "use:"}')
    again = language_model.load(tmp_path / "policy")
    again.save(tmp_path / "same", again.init(None))
    assert (tmp_path / "same" / file.name).read_bytes() == file.read_bytes()
    changed = again._replace(stop_strings=("end",))
    (tmp_path / "other").mkdir()
    changed.describe(tmp_path / "other")
    said = json.loads((tmp_path / "other" / file.name).read_text())
    assert said == {"top_p": 0.9, "stop_strings": ["end"]}
