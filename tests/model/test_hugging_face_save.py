"""Saving: what is saved is loaded, all or nothing."""

import dataclasses
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hugging_face_folders import SMALL, refuses, small_params
from safetensors.numpy import load_file

from rljax.data import tokenizer
from rljax.model import Llama3Scaling, hugging_face


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_what_is_saved_is_loaded(tmp_path, qkv_bias, tie_embeddings):
    config = dataclasses.replace(
        SMALL,
        qkv_bias=qkv_bias,
        tie_embeddings=tie_embeddings,
        rope_theta=123.5,
        norm_epsilon=3e-4,
        initializer_std=0.03,
    )
    params = small_params(config)
    hugging_face.save(tmp_path / "new" / "model", config, params)
    got_config, got = hugging_face.load(tmp_path / "new" / "model")
    assert got_config == config
    jax.tree.map(np.testing.assert_array_equal, got, params)


@pytest.mark.parametrize("scaled", [False, True])
def test_normalised_queries_and_scaled_positions_are_saved_and_loaded(tmp_path, scaled):
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64) if scaled else None
    config = dataclasses.replace(SMALL, qk_norm="head", rope_scaling=scaling)
    params = small_params(config)
    assert {"q_norm", "k_norm"} <= params["layers"].keys()
    hugging_face.save(tmp_path / "model", config, params)
    got_config, got = hugging_face.load(tmp_path / "model")
    assert got_config == config
    jax.tree.map(np.testing.assert_array_equal, got, params)


def test_shards_are_cut_at_the_given_size_and_load(tmp_path):
    params = small_params()
    hugging_face.save(tmp_path / "model", SMALL, params, shard_bytes=2000)
    files = sorted(x.name for x in (tmp_path / "model").glob("*.safetensors"))
    # Tensors of 240 to 960 bytes, 5232 in all: 2000 bytes hold at least two.
    assert 3 <= len(files) <= 5 and files[0].startswith("model-00001-of-0000")
    for name in files:
        tensors = load_file(tmp_path / "model" / name)
        assert sum(x.nbytes for x in tensors.values()) <= 2000
    _, got = hugging_face.load(tmp_path / "model")
    jax.tree.map(np.testing.assert_array_equal, got, params)


def test_a_folder_is_never_overwritten_but_may_be_empty(tmp_path):
    (tmp_path / "model").mkdir()
    hugging_face.save(tmp_path / "model", SMALL, small_params())
    refuses(tmp_path, "path must not exist yet or be an empty folder, got .*model'")


def test_parameters_of_another_decoder_are_not_written(tmp_path):
    params = small_params()
    wider = dataclasses.replace(SMALL, vocab_size=12)
    refuses(tmp_path, r"only in one.*\['embedding'\] \[11, 12\]", config=wider)
    lora = {**params, "lora": {"a": jnp.ones(3)}}
    refuses(tmp_path, r"only in one of them: \['lora'\]\['a'\] \[3\]", params=lora)
    mixed = {**params, "norm": {"scale": jnp.ones(12, jnp.bfloat16)}}
    refuses(tmp_path, "one dtype .* got bfloat16, float32; cast", params=mixed)
    whole = jax.tree.map(lambda x: x.astype(jnp.int32), params)
    refuses(
        tmp_path, "one dtype of float32, bfloat16, float16, got int32", params=whole
    )


def test_a_model_type_that_cannot_say_it_is_refused(tmp_path):
    refuses(
        tmp_path,
        "'qwen2', which cannot: .*qkv_bias is True there, not False",
        model_type="qwen2",
    )
    refuses(tmp_path, r"one of llama, qwen2, .*, got 'gpt2'", model_type="gpt2")
    odd = dataclasses.replace(SMALL, d_model=13)
    refuses(tmp_path, "pass model_type='mistral'", config=odd, params=small_params(odd))
    both = dataclasses.replace(SMALL, qkv_bias=True, qk_norm="head")
    refuses(
        tmp_path,
        "must be one that a family of models can",
        both,
        small_params(both),
    )


def test_extra_keys_are_kept_and_may_not_contradict(tmp_path):
    refuses(tmp_path, "extra must leave {'vocab_size': 11}", extra={"vocab_size": 9})
    linear = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    refuses(tmp_path, "extra must not change .* rope_scaling", extra=linear)
    extra = {"max_position_embeddings": 99, "eos_token_id": [3, 4], "head_dim": None}
    hugging_face.save(tmp_path / "model", SMALL, small_params(), extra=extra)
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (saved["max_position_embeddings"], saved["eos_token_id"]) == (99, [3, 4])
    assert saved["head_dim"] == 6  # null said nothing else


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path):
    words = tokenizer.character_tokenizer("0123456789")
    refuses(tmp_path, "at most vocab_size=11 tokens, got 12", tokenizer=words)


def test_a_failure_while_writing_leaves_no_folder(tmp_path):
    class FullDisk:
        """A tokenizer whose files do not fit any more: weights are written by then."""

        bos_token_id = eos_token_id = pad_token_id = 0

        def get_vocab(self):
            return {"a": 0}

        def save_pretrained(self, folder):
            assert (folder / "model.safetensors").is_file()
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        hugging_face.save(
            tmp_path / "model", SMALL, small_params(), tokenizer=FullDisk()
        )
    assert list(tmp_path.iterdir()) == []


def test_weights_that_do_not_fit_leave_no_folder(tmp_path):
    # The system itself cuts the file after 2000 of its 5000 bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    params = small_params()
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(Exception, match=r"(?i)file too large"):
            hugging_face.save(tmp_path / "model", SMALL, params)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
