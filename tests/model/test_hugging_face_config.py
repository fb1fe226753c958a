"""config.json: every spelling of what the decoder computes, every refusal."""

import dataclasses

import numpy as np
import pytest
from hugging_face_folders import SMALL, edit, edit_tensors, small_params

from rljax.model import LinearScaling, Llama3Scaling, YarnScaling, hugging_face
from rljax.model.hugging_face import config as config_json


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_theta": 777.0, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 777.0}, "rope_theta": 777},
        {"rope_theta": 777.0, "rope_scaling": None},
        {"rope_theta": 777.0, "rope_scaling": {"type": "default"}},
    ],
)
def test_all_spellings_of_the_rotary_base_are_read(folder, rope):
    edit(folder, remove=["rope_theta"])
    assert hugging_face.load(folder)[0].rope_theta == 10_000.0
    edit(folder, **rope)
    assert hugging_face.load(folder)[0].rope_theta == 777.0


def test_absent_sizes_follow_from_the_others(folder):
    # 2 heads in 12 dimensions are 6 wide; no key/value heads are as many as heads, so
    # the key kernel must now be [12, 12].
    edit(folder, remove=["head_dim", "num_key_value_heads", "attention_bias"])
    kernel = np.ones((12, 12), np.float32)
    names = [f"model__layers__0__self_attn__{x}_proj__weight" for x in "kv"]
    edit_tensors(folder, **dict.fromkeys(names, kernel))
    config, _ = hugging_face.load(folder)
    assert (config.head_dim, config.num_kv_heads) == (6, 2)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500_000.0, "rope_scaling": LLAMA3},
        {"rope_parameters": LLAMA3 | {"rope_theta": 500_000.0}},
    ],
)
def test_both_spellings_of_llama_3s_scaling_are_read(folder, rope):
    edit(folder, remove=["rope_theta"])
    edit(folder, **rope)
    config, _ = hugging_face.load(folder)
    assert config.rope_theta == 500_000.0
    assert config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "bert"}, "model_type must be one of llama, qwen2, qwen3, "),
        ({"model_type": None}, "got None"),
        ({"hidden_act": "gelu"}, r'hidden_act must be "silu" or "swish".* got "gelu"'),
        ({"attention_bias": True}, "attention_bias must be false .* got true"),
        ({"mlp_bias": True}, "mlp_bias must be false"),
        ({"attention_dropout": 0.1}, "attention_dropout must be 0.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1.0"),
        ({"quantization_config": {"bits": 4}}, 'quantization_config .*"bits": 4'),
        ({"per_layer_config": {"0": {}}}, "per_layer_config must be null"),
        ({"layer_types": ["sliding_attention"]}, "layer_types .*sliding_attention"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, 'rope_type "default", '),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor must be a number"),
        (
            {"rope_scaling": {"rope_type": "llama3"}},
            "scaling.factor must be a",
        ),
        ({"rope_scaling": LLAMA3 | {"factor": 0.5}}, r"factor must lie in .1"),
        (
            {"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}},
            "high_turns must lie",
        ),
        ({"rope_scaling": LLAMA3 | {"attention_factor": 1.0}}, "attention_factor"),
        (
            {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3 | {"factor": 4.0}},
            "need one rotary scaling",
        ),
        (
            {"rope_parameters": {"rope_type": "longrope"}},
            'rope_parameters must.*"longrope"',
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "original_max_position_embeddings must be a whole number",
        ),
        # Qwen2-VL's and per-layer forms say "default", or nothing, and mean more.
        ({"rope_scaling": {"type": "default", "mrope_section": [1]}}, "mrope_section"),
        ({"rope_parameters": {"full_attention": {}}}, "full_attention"),
        ({"rope_parameters": 3}, "rope_parameters must be an object, got 3"),
        (
            {"rope_parameters": {"rope_theta": 5.0}},
            "one rope_theta, got .*10000.0.*5.0",
        ),
        ({"rope_theta": None}, "rope_theta must be a number above 0, got null"),
        ({"hidden_size": 12.0}, "hidden_size must be a whole number above 0, got 12.0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be .* got 0"),
        ({"vocab_size": True}, "vocab_size must be .* got true"),
        ({"rms_norm_eps": "small"}, 'rms_norm_eps must be .* got "small"'),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"head_dim": None, "hidden_size": 13}, "hidden_size must be a multiple"),
        ({"num_key_value_heads": 3}, "num_heads must be a multiple of num_kv"),
        ({"head_dim": 5}, "head_dim must be even"),
        (
            {"model_type": "qwen2", "use_sliding_window": 1},
            "use_sliding_window must be true or false",
        ),
        (
            {"model_type": "qwen2", "layer_types": ["sliding_attention"]},
            "layer_types must agree with sliding_window and use_sliding_window",
        ),
        (
            {"model_type": "mistral", "layer_types": ["full_attention"]},
            "layer_types must agree .* and window 4096",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window must be"),
        ({"model_type": "mistral", "layer_types": []}, "num_hidden_layers=1 kinds"),
        ({"model_type": "smollm3", "no_rope_layers": [1, 0]}, "=1 zeros and ones"),
        (
            {"model_type": "gemma2", "hidden_act": None, "final_logit_softcapping": 0},
            "final_logit_softcapping must be a number above 0",
        ),
        (
            {"model_type": "gemma3_text", "hidden_act": "silu"},
            'hidden_act must be "gelu_pytorch_tanh"',
        ),
        (
            {
                "model_type": "gemma3_text",
                "hidden_act": None,
                "rope_parameters": {"rope_type": "default"},
            },
            "must hold objects full_attention and sliding_attention",
        ),
        (
            {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 5},
            "num_chosen must lie in",
        ),
        (
            {"model_type": "qwen3_moe", "num_experts": 4, "num_local_experts": 5},
            "need one num_experts",
        ),
        (
            {"model_type": "qwen3_moe", "decoder_sparse_step": 2},
            "decoder_sparse_step must be 1",
        ),
        (
            {"model_type": "phi3", "partial_rotary_factor": 0.2},
            "rotary_dim must be even",
        ),
        (
            {
                "model_type": "phi3",
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0],
                    "long_factor": [1.0],
                },
            },
            "a factor for each pair of rotated features, 3, got 1 short",
        ),
    ],
)
def test_what_the_decoder_does_not_compute_is_named(folder, changes, told):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=f"config.json: .*{told}"):
        hugging_face.load(folder)


def test_a_window_that_no_layer_uses_is_no_obstacle(tmp_path):
    # Every Qwen2.5 has sliding_window 32768 and use_sliding_window false.
    config = dataclasses.replace(SMALL, qkv_bias=True)
    extra = {"sliding_window": 32768, "layer_types": ["full_attention"]}
    hugging_face.save(tmp_path / "m", config, small_params(config), extra=extra)
    assert hugging_face.load(tmp_path / "m")[0] == config


# As published, in the spelling of transformers 4; and what transformers 5 writes.
GEMMA3 = {
    "model_type": "gemma3_text",
    "vocab_size": 64,
    "num_hidden_layers": 7,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 6,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 512,
}
FULL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
TYPES = ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]


@pytest.mark.parametrize(
    "spelling",
    [
        {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 6,
        },
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {"full_attention": FULL, "sliding_attention": LOCAL},
            "layer_types": TYPES,
        },
    ],
)
def test_both_spellings_of_two_rotary_bases_are_one_configuration(spelling):
    got = config_json.read({**GEMMA3, **spelling}, "config.json")
    assert (got.rope_theta, got.sliding_rope_theta) == (1e6, 1e4)
    assert got.rope_scaling == LinearScaling(8.0)
    assert (got.window, got.sliding) == (512, (True,) * 5 + (False, True))
    # What is written reads as the same, over the original and without it.
    for extra in ({}, {**GEMMA3, **spelling}):
        written = config_json.entries(got, extra=extra)
        assert config_json.read(written, "written") == got
        assert all(written[key] == value for key, value in extra.items())


def test_yarn_is_read_with_the_papers_attention_factor():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    entries = {**GEMMA3, "model_type": "qwen2", "rope_scaling": scaling}
    got = config_json.read(entries, "config.json").rope_scaling
    assert got == YarnScaling(4.0, 64, pytest.approx(0.1 * np.log(4.0) + 1))
    explicit = {**scaling, "attention_factor": 1.5, "beta_fast": 8, "truncate": False}
    got = config_json.read({**entries, "rope_scaling": explicit}, "config.json")
    assert got.rope_scaling == YarnScaling(4.0, 64, 1.5, fast_turns=8, whole=False)


def test_how_a_decoder_computes_is_no_part_of_its_configuration():
    # Compared with the family's, each would be refused when a policy is saved.
    how = {"attention": "splash", "attention_block": 64, "remat": True, "unroll": 1}
    changed = dataclasses.replace(SMALL, dtype="bfloat16", **how)
    assert config_json.entries(changed) == config_json.entries(SMALL)


def test_an_adapter_is_named_as_such(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    with pytest.raises(ValueError, match="holds a LoRA adapter"):
        hugging_face.load(folder)


@pytest.mark.parametrize("key", ["vocab_size", "intermediate_size", "hidden_size"])
def test_a_missing_size_is_named(folder, key):
    edit(folder, remove=[key])
    with pytest.raises(ValueError, match=f"config.json: {key} must be given, found"):
        hugging_face.load(folder)


def test_a_missing_folder_and_a_file_are_told_apart(folder):
    with pytest.raises(ValueError, match="nowhere', which is missing; download"):
        hugging_face.load(folder / "nowhere")
    with pytest.raises(ValueError, match=r"config.json', which is a file"):
        hugging_face.load(folder / "config.json")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "config.json: not valid JSON"),
        (b"\xff{}", "config.json: not valid JSON"),
        ("[1]", "must hold an object, got a list"),
        ("{}", "config.json: model_type must be one of"),
    ],
)
def test_a_broken_configuration_is_named(folder, text, told):
    text = text.encode() if isinstance(text, str) else text
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=told):
        hugging_face.load(folder)
