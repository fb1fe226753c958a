"""What a folder says beside weights and tokenizer is kept, united, and checked."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_folders import small_params
from safetensors.numpy import load_file, save_file

from rljax.data import tokenizer
from rljax.model import DecoderConfig, hugging_face
from rljax.model.hugging_face import metadata as metadata

SMALL = DecoderConfig(
    vocab_size=16,
    num_layers=1,
    d_model=12,
    num_heads=2,
    num_kv_heads=1,
    head_dim=6,
    d_ff=20,
    tie_embeddings=True,
)
PARAMS = small_params(SMALL)
WORDS = tokenizer.character_tokenizer("0123456789")  # ends with 1, 12 of 16 rows
CHAT = "{% for m in messages %}{{ m.content }}<end>{% endfor %}"


def write_json(file, entries):
    file.write_text(json.dumps(entries))


@pytest.fixture
def folder(tmp_path):
    """A folder as published: more is said than the decoder computes with."""
    path = tmp_path / "published"
    hugging_face.save(path, SMALL, PARAMS, tokenizer=WORDS)
    entries = json.loads((path / "config.json").read_text())
    entries |= {
        "max_position_embeddings": 16384,
        "eos_token_id": [1, 7],
        "bos_token_id": None,
        "hidden_act": "swish",
        "head_dim": None,
        "architectures": ["LlamaForCausalLM"],
        "transformers_version": "4.51.3",
        "dtype": "bfloat16",
        "rope_theta": 10000,
        "attention_dropout": 0.0,
        "rope_scaling": None,
        "sliding_window": 32768,
        "use_cache": True,
        "some_key": {"of": ["theirs"]},
    }
    write_json(path / "config.json", entries)
    write_json(path / "generation_config.json", {"eos_token_id": [1, 9], "top_k": 20})
    (path / "chat_template.jinja").write_text(CHAT)
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (path / "LICENSE.txt").write_text("as you like")
    (path / "pytorch_model.bin").write_bytes(b"weights of another format")
    return path


def saved(folder, out):
    """What saving the policy of `folder` again, after a run, leaves."""
    said = metadata.read(folder)
    config, params = hugging_face.load(folder)
    (folder / "config.json").unlink()  # a run may outlive what it started from
    hugging_face.save(out, config, params, metadata=said)
    return json.loads((out / "config.json").read_text())


def test_every_key_of_the_configuration_survives(folder, tmp_path):
    before = json.loads((folder / "config.json").read_text())
    after = saved(folder, tmp_path / "out")
    # Of max_position_embeddings the reader's default is 2048, of the end tokens one
    # would be left. The weights' own dtype is the one thing that changes.
    changed = {"dtype": "float32", "head_dim": 6}
    assert before | changed == {key: after[key] for key in before}
    assert hugging_face.load(tmp_path / "out")[0] == SMALL


def test_keys_that_the_folder_leaves_out_stay_out(folder, tmp_path):
    # A null of eos_token_id would say that nothing ends a text.
    entries = json.loads((folder / "config.json").read_text())
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        del entries[key]
    write_json(folder / "config.json", entries)
    after = saved(folder, tmp_path / "out")
    assert after.keys() == entries.keys()


def test_generation_chat_templates_and_licence_come_along(folder, tmp_path):
    kept = (
        "generation_config.json",
        "chat_template.jinja",
        "additional_chat_templates/tool.jinja",
        "LICENSE.txt",
    )
    before = {name: (folder / name).read_bytes() for name in kept}
    saved(folder, tmp_path / "out")
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in kept}
    assert not (tmp_path / "out" / "pytorch_model.bin").exists()
    assert tokenizer.load_tokenizer(tmp_path / "out").chat_template is not None


def test_the_tokenizers_files_stay_as_they_are_unless_another_is_given(
    folder, tmp_path
):
    # Written by transformers 5 they name classes that transformers 4 does not have,
    # lose keys (add_bos_token) and whole files (tokenizer.model).
    kept = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    entries = json.loads((folder / "tokenizer_config.json").read_text())
    entries |= {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}
    write_json(folder / "tokenizer_config.json", entries)
    (folder / "tokenizer.model").write_bytes(b"of sentencepiece")
    before = {name: (folder / name).read_bytes() for name in kept}
    said = metadata.read(folder)
    hugging_face.save(tmp_path / "same", SMALL, PARAMS, metadata=said)
    assert before == {name: (tmp_path / "same" / name).read_bytes() for name in kept}
    other = tokenizer.character_tokenizer("abc")
    hugging_face.save(tmp_path / "new", SMALL, PARAMS, tokenizer=other, metadata=said)
    assert not (tmp_path / "new" / "tokenizer.model").exists()
    assert tokenizer.load_tokenizer(tmp_path / "new").get_vocab() == other.get_vocab()


def test_a_chat_template_of_the_tokenizers_own_is_not_overwritten(folder, tmp_path):
    words = tokenizer.load_tokenizer(folder)
    words.chat_template = "{{ mine }}"
    said = metadata.read(folder)
    hugging_face.save(tmp_path / "out", SMALL, PARAMS, tokenizer=words, metadata=said)
    again = tokenizer.load_tokenizer(tmp_path / "out")
    assert "mine" in str(again.chat_template)


def test_transformers_reads_what_survived(folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    saved(folder, tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.max_position_embeddings, config.eos_token_id) == (16384, [1, 7])
    generation = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.eos_token_id, generation.top_k) == ([1, 9], 20)


def test_extra_wins_over_what_the_folder_said(folder, tmp_path):
    said, extra = metadata.read(folder), {"max_position_embeddings": 99}
    hugging_face.save(tmp_path / "out", SMALL, PARAMS, metadata=said, extra=extra)
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (after["max_position_embeddings"], after["use_cache"]) == (99, True)


def test_what_saving_would_refuse_is_known_before_the_run(folder):
    said = metadata.read(folder)
    wide = tokenizer.character_tokenizer("0123456789abcde")
    with pytest.raises(ValueError, match=r"at most vocab_size=16 tokens, got 17.*'e'"):
        hugging_face.config_entries(SMALL, wide, said)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere', which is missing; download"):
        metadata.read(tmp_path / "nowhere")


# End tokens


@pytest.mark.parametrize(
    ("config", "generation", "want"),
    [
        ({}, None, (1,)),
        ({"eos_token_id": None}, {}, (1,)),
        ({"eos_token_id": 1}, {"eos_token_id": 7}, (1, 7)),
        ({"eos_token_id": [7, 1]}, None, (1, 7)),
        ({"eos_token_id": 9}, {"eos_token_id": [1, 7, 9]}, (1, 9, 7)),
        ({"eos_token_id": [15]}, {"eos_token_id": []}, (1, 15)),  # no token, but a row
    ],
)
def test_a_text_ends_with_any_token_that_one_of_three_names(
    folder, config, generation, want
):
    # The tokenizer's alone: of 64 completions none stopped at the other.
    entries = json.loads((folder / "config.json").read_text())
    del entries["eos_token_id"]
    write_json(folder / "config.json", {**entries, **config})
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    assert metadata.stop_tokens(WORDS, metadata.read(folder), 16) == want


@pytest.mark.parametrize("bad", [16, -1, "<end>", 1.0, True, [1, 99], [[1]], {"a": 1}])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_end_token_that_is_no_id_is_named_with_its_file(folder, name, bad):
    entries = json.loads((folder / name).read_text())
    write_json(folder / name, entries | {"eos_token_id": bad})
    with pytest.raises(
        ValueError, match=rf"/{name}: an end token must be an id in \[0"
    ):
        metadata.stop_tokens(WORDS, metadata.read(folder), 16)


@pytest.mark.parametrize("bad", ["4096", 2.5, True, 0, [1]])
def test_a_length_that_is_no_number_is_named_with_its_file(folder, bad):
    # It was compared with a number: '<' not supported between 'int' and 'str'.
    entries = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", entries | {"max_position_embeddings": bad})
    with pytest.raises(ValueError, match=r"config\.json: max_position_embeddings must"):
        metadata.max_positions(metadata.read(folder))
    write_json(folder / "config.json", entries | {"max_position_embeddings": None})
    assert metadata.max_positions(metadata.read(folder)) is None


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_broken_description_is_named(folder, name, content):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=rf"/{name}: (must hold an object|not valid)"):
        metadata.read(folder)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers"])
@pytest.mark.parametrize("size", [2**31, 10**30])
def test_sizes_that_no_array_has_are_named(folder, key, size):
    # OverflowError: Python int too large to convert to C long.
    entries = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", entries | {key: size})
    with pytest.raises(ValueError, match=rf"config\.json: {key} must be"):
        hugging_face.load(folder)


def test_numbers_that_are_read_as_infinite_are_named(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("10000", "1e999"))
    with pytest.raises(ValueError, match=r"config\.json: rope_theta must be a number"):
        hugging_face.load(folder)


# Indices that list what no file holds


@pytest.fixture
def sharded(tmp_path):
    path = tmp_path / "sharded"
    hugging_face.save(path, SMALL, PARAMS, shard_bytes=2000)
    return path


def listed(folder, **changes):
    index = folder / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    changes = {name.replace("__", "."): shard for name, shard in changes.items()}
    entries["weight_map"] |= changes
    write_json(index, entries)
    return entries["weight_map"]


def same_as_saved(folder):
    config, params = hugging_face.load(folder)
    assert config == SMALL
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)


@pytest.mark.parametrize("shard", ["theirs", "model-00009-of-00009.safetensors"])
def test_a_tied_head_that_is_only_listed_is_no_obstacle(sharded, shard):
    # "Download the folder again" brings the same index: others publish it so.
    if shard == "theirs":
        shard = listed(sharded)["model.norm.weight"]
    inv_freq = "model__layers__0__self_attn__rotary_emb__inv_freq"
    listed(sharded, lm_head__weight=shard, **{inv_freq: shard})
    same_as_saved(sharded)


def test_rotary_frequencies_that_are_only_held_are_no_obstacle(sharded):
    file = sharded / listed(sharded)["model.norm.weight"]
    tensors = {name: x.copy() for name, x in load_file(file).items()}
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    file.unlink()
    save_file({**tensors, name: np.ones(3, np.float32)}, file)
    same_as_saved(sharded)


def test_a_head_that_is_needed_and_only_listed_is_missed(sharded):
    shard = listed(sharded)["model.norm.weight"]
    listed(sharded, lm_head__weight=shard)
    entries = json.loads((sharded / "config.json").read_text())
    write_json(sharded / "config.json", entries | {"tie_word_embeddings": False})
    with pytest.raises(ValueError, match=r"lm_head.weight; without .*_embeddings must"):
        hugging_face.load(sharded)


def test_a_shard_whose_name_is_no_name_is_missing(sharded):
    listed(sharded, lm_head__weight=[1])
    same_as_saved(sharded)
    listed(sharded, model__norm__weight=[1])
    with pytest.raises(ValueError, match=r"shard '\[1\]' is missing"):
        hugging_face.load(sharded)


def test_parameters_are_saved_in_their_own_dtype_whatever_the_folder_said(
    folder, tmp_path
):
    said = metadata.read(folder)
    half = jax.tree.map(lambda x: x.astype(jnp.float16), PARAMS)
    hugging_face.save(tmp_path / "out", SMALL, half, metadata=said)
    after = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (after["dtype"], after["torch_dtype"]) == ("float16", "float16")
