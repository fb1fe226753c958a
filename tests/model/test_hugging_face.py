"""Hugging Face folders: equal logits, gradients and stories; every broken folder."""

import dataclasses
import functools
import json
import pathlib
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rljax.data import tokenizer
from rljax.model import DecoderConfig, decoder_policy, hugging_face
from rljax.rollout import sample
from rljax.types import Prompts, Samples

SHARED = pathlib.Path(__file__).parents[2].parent / "shared"
STORIES = SHARED / "models" / "stories260k"

NUM_LAYERS, VOCAB = 2, 61
COMMON = {
    "vocab_size": VOCAB,
    "num_hidden_layers": NUM_LAYERS,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
# Sizes differ from each other wherever they may: two that are swapped then fail.
MODELS = {
    "llama_grouped": (
        "Llama",
        {
            "hidden_size": 48,
            "intermediate_size": 80,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
        },
    ),
    "llama_wide_heads_tied": (
        "Llama",
        {
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 14,
            "rms_norm_eps": 0.05,
            "rope_theta": 500_000.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_grouped_tied": (
        "Qwen2",
        {
            "hidden_size": 40,
            "intermediate_size": 72,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "rope_theta": 1_000_000.0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen2_narrow_heads": (
        "Qwen2",
        {
            "hidden_size": 36,
            "intermediate_size": 44,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 4,
            "rms_norm_eps": 0.01,
            "rope_theta": 100.0,
            "tie_word_embeddings": False,
        },
    ),
    "mistral_odd_width": (
        "Mistral",
        {
            "hidden_size": 20,
            "intermediate_size": 44,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
    ),
}


def torch_model(name):
    """A small random model of transformers; biases and norms are random as well."""
    torch = pytest.importorskip("torch")
    import transformers

    family, sizes = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**COMMON, **sizes)
    torch.set_num_threads(1)  # the matrices are tiny
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        # As initialised, biases are 0 and norms 1: mapped wrongly, nobody would see.
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2 + (p.ndim == 1))
    return model


SLOW = ("llama_wide_heads_tied", "qwen2_narrow_heads")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in MODELS
    ],
)
def both(request, tmp_path_factory):
    """(transformers' model, its folder, our config, our parameters)."""
    model = torch_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder, *hugging_face.load(folder)


def batch(num_prompts=3, num_samples=2, num_tokens=6):
    """Prompts of 3, 7 and 5 tokens with junk behind them, and completions."""
    rng = np.random.default_rng(0)
    shape = (num_prompts, num_samples, num_tokens)
    length = np.asarray([3, 7, 5], np.int32)
    prompts = Prompts(
        tokens=jnp.asarray(rng.integers(0, VOCAB, (num_prompts, 7)), jnp.int32),
        length=jnp.asarray(length),
        id=jnp.arange(num_prompts),
    )
    samples = Samples(
        tokens=jnp.asarray(rng.integers(0, VOCAB, shape), jnp.int32),
        mask=jnp.ones(shape, bool),
        source=jnp.zeros(shape[:2], jnp.int32),
        finished=jnp.ones(shape[:2], bool),
    )
    return prompts, samples


def torch_logits(model, prompts, samples):
    """[P, G, T, V] before each completion token; every row alone and unpadded."""
    import torch

    out = []
    for p, length in enumerate(np.asarray(prompts.length)):
        for completion in np.asarray(samples.tokens[p]):
            row = np.concatenate([prompts.tokens[p, :length], completion])
            logits = model(torch.tensor(row[None].astype(np.int64))).logits[0]
            out.append(logits[length - 1 : -1])
    return torch.stack(out).unflatten(0, samples.tokens.shape[:2])


def torch_logp(model, prompts, samples):
    """[P, G, T] of the completions' tokens."""
    import torch

    logp = torch_logits(model, prompts, samples).log_softmax(-1)
    index = torch.tensor(np.asarray(samples.tokens, np.int64))
    return logp.gather(-1, index[..., None])[..., 0]


# Models are so small that compiling takes longer than computing.
quick_jit = functools.partial(
    jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.partial(quick_jit, static_argnums=0)
def measured(config, params, prompts, samples):
    """Logits, logp and the gradient of the summed logp, in one compilation."""
    policy = decoder_policy(config)

    def loss(params):
        logp = policy.measure(params, prompts, samples).logp
        return jnp.sum(logp), logp

    (_, logp), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    hidden = policy.hidden(params, prompts, samples)
    return policy.logits(params, hidden), logp, gradient


def test_logits_and_logp_are_those_of_transformers(both):
    # Rotation in pairs instead of halves, a wrong epsilon, theta, head width or an
    # untransposed square kernel all move logits by far more than 1e-3.
    model, _, config, params = both
    prompts, samples = batch()
    logits, logp, _ = measured(config, params, prompts, samples)
    want = torch_logits(model, prompts, samples).detach().numpy()
    assert np.std(want) > 0.5  # a model that says nothing would agree with anything
    np.testing.assert_allclose(logits, want, atol=1e-4, rtol=1e-5)
    want = torch_logp(model, prompts, samples).detach().numpy()
    np.testing.assert_allclose(logp, want, atol=1e-4, rtol=1e-5)


def test_gradients_are_those_of_torch(both, tmp_path):
    model, folder, config, params = both
    prompts, samples = batch()
    _, _, got = measured(config, params, prompts, samples)
    model.zero_grad()
    torch_logp(model, prompts, samples).sum().backward()
    # torch's gradients as a checkpoint: reading it brings them into our layout.
    shutil.copy(folder / "config.json", tmp_path)
    tensors = {name: p.grad.numpy() for name, p in model.named_parameters()}
    save_file(tensors, tmp_path / "model.safetensors")
    _, want = hugging_face.load(tmp_path)

    def compare(path, x, y):
        error = np.linalg.norm(x - y) / np.linalg.norm(y)
        assert error < 1e-4, (jax.tree_util.keystr(path), error)

    jax.tree_util.tree_map_with_path(compare, got, want)


def greedy(config, params, prompts, num_tokens):
    draw = sample.greedy(decoder_policy(config), max_tokens=num_tokens, stop_tokens=())
    return quick_jit(draw)(params, prompts, jax.random.key(0))[0].tokens[:, 0]


def torch_greedy(model, row, num_tokens):
    import torch

    row = torch.tensor(np.asarray(row, np.int64)[None])
    out = model.generate(
        row,
        attention_mask=torch.ones_like(row),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, row.shape[1] :].numpy()


def test_greedy_sampling_is_generate_token_for_token(both):
    # A cache whose positions start behind the padding departs at the second token.
    model, _, config, params = both
    prompts, _ = batch()
    got = greedy(config, params, prompts, 20)
    for p, length in enumerate(np.asarray(prompts.length)):
        want = torch_greedy(model, prompts.tokens[p, :length], 20)
        np.testing.assert_array_equal(got[p], want)


def test_a_saved_folder_loads_in_transformers_with_equal_logits(both, tmp_path):
    import torch
    import transformers

    model, _, config, params = both
    family = model.config.model_type
    hugging_face.save(tmp_path / "out", config, params, model_type=family)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(loaded) is type(model)
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched
    row = torch.arange(12)[None]
    assert torch.equal(loaded(row).logits, model(row).logits)
    assert loaded.config.eos_token_id is None  # not Llama's 2


def test_what_is_saved_over_the_original_config_keeps_its_other_keys(both, tmp_path):
    _, folder, config, params = both
    original = json.loads((folder / "config.json").read_text())
    original["dtype"] = "bfloat16"  # of other weights than those saved now
    family = original["model_type"]
    hugging_face.save(
        tmp_path / "out", config, params, model_type=family, extra=original
    )
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["max_position_embeddings"] == original["max_position_embeddings"]
    assert (saved["dtype"], saved["torch_dtype"]) == ("float32", "float32")
    assert hugging_face.load(tmp_path / "out")[0] == config


def test_shards_of_transformers_load_to_the_same_parameters(tmp_path):
    model = torch_model("llama_grouped")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    _, one = hugging_face.load(tmp_path / "one")
    _, many = hugging_face.load(tmp_path / "many")
    jax.tree.map(np.testing.assert_array_equal, one, many)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_weights_load_and_save_exactly(tmp_path, name):
    torch = pytest.importorskip("torch")
    import transformers

    model = torch_model("qwen2_grouped_tied").to(getattr(torch, name))
    model.save_pretrained(tmp_path / "in")
    config, wide = hugging_face.load(tmp_path / "in")
    want = model.model.layers[1].mlp.down_proj.weight.detach().float().numpy()
    down = wide["layers"]["down"]["kernel"]
    assert down.dtype == jnp.float32
    np.testing.assert_array_equal(down[1], want.T)
    _, narrow = hugging_face.load(tmp_path / "in", param_dtype=name)
    assert {x.dtype.name for x in jax.tree.leaves(narrow)} == {name}
    hugging_face.save(tmp_path / "out", config, narrow)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, name)
    for got, want in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(got, want)


needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason="no shared models")


@needs_stories
def test_a_real_model_tells_the_story_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    config, params = hugging_face.load(STORIES)
    words = tokenizer.load_tokenizer(STORIES)
    row = np.asarray(words("Once upon a time")["input_ids"], np.int32)
    prompts = Prompts(
        tokens=jnp.asarray(np.pad(row, (0, 5), constant_values=9))[None],
        length=jnp.asarray([row.size]),
        id=jnp.zeros(1, jnp.int32),
    )
    got = np.asarray(greedy(config, params, prompts, 60)[0])
    hugging_face.save(tmp_path / "out", config, params, tokenizer=words)
    for folder in (STORIES, tmp_path / "out"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        np.testing.assert_array_equal(got, torch_greedy(model, row, 60))
    assert "there was a little girl" in words.decode(got)
    policy = decoder_policy(config)
    samples = Samples(
        tokens=jnp.asarray(got)[None, None],
        mask=jnp.ones((1, 1, 60), bool),
        source=jnp.zeros((1, 1), jnp.int32),
        finished=jnp.ones((1, 1), bool),
    )
    hidden = quick_jit(policy.hidden)(params, prompts, samples)
    logits = policy.logits(params, hidden)
    with torch.no_grad():
        want = torch_logits(model, prompts, samples).numpy()
    np.testing.assert_allclose(logits, want, atol=1e-4, rtol=1e-5)


@needs_stories
def test_a_real_model_survives_a_round_trip_bit_by_bit(tmp_path):
    config, params = hugging_face.load(STORIES)
    words = tokenizer.load_tokenizer(STORIES)
    hugging_face.save(tmp_path / "out", config, params, tokenizer=words)
    want = load_file(STORIES / "model.safetensors")
    got = load_file(tmp_path / "out" / "model.safetensors")
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].tobytes() == tensor.tobytes(), name
    assert hugging_face.load(tmp_path / "out")[0] == config
    again = tokenizer.load_tokenizer(tmp_path / "out")
    text = "Lily saw a dog."
    assert again(text)["input_ids"] == words(text)["input_ids"]
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    # 1, 2, 0 are <s>, </s> and <unk>: what tokenizer_config.json says.
    assert [saved[f"{x}_token_id"] for x in ("bos", "eos", "pad")] == [1, 2, 0]


# From here on neither torch nor transformers' models: folders, right and wrong.

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


def small_params(config=SMALL):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(decoder_policy(config).init, jax.random.key(1))
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), shapes
    )


@pytest.fixture
def folder(tmp_path):
    """A sound folder of the small decoder, to be broken."""
    hugging_face.save(tmp_path / "model", SMALL, small_params())
    return tmp_path / "model"


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


def test_importing_policies_imports_neither_torch_nor_transformers():
    code = (
        "import sys, rljax.model.hugging_face.weights as h;"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


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


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gemma3"}, "model_type must be one of llama, qwen2, mistral, "),
        ({"model_type": None}, "got None"),
        ({"hidden_act": "gelu"}, r'of hidden_act only "silu" or "swish".* got "gelu"'),
        ({"attention_bias": True}, "attention_bias only false .* got true"),
        ({"mlp_bias": True}, "mlp_bias only false"),
        ({"attention_dropout": 0.1}, "attention_dropout only 0.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor only 1.0"),
        ({"quantization_config": {"bits": 4}}, 'quantization_config .*got {"bits": 4}'),
        ({"per_layer_config": {"0": {}}}, "per_layer_config only null"),
        ({"layer_types": ["sliding_attention"]}, "layer_types .*sliding_attention"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, 'only rope_type "default"'),
        ({"rope_scaling": {"rope_type": "llama3"}}, 'of rope_scaling.*"llama3"'),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'of rope_parameters.*"yarn"'),
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
            {"model_type": "qwen2", "use_sliding_window": True},
            "use_sliding_window only",
        ),
        ({"model_type": "mistral"}, "sliding_window only null .* got 4096"),
        ({"model_type": "mistral", "sliding_window": 64}, "sliding_window .* got 64"),
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


def test_missing_files_are_named_with_what_is_there(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"model.safetensors.index.json, found \['conf"
    ):
        hugging_face.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"must hold config.json, found \['pytorch"):
        hugging_face.load(folder)


@pytest.mark.parametrize("size", [0, 5, 500, 3000])
def test_a_truncated_file_is_named(folder, size):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    assert len(content) > 3000
    file.unlink()
    file.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"model.safetensors: broken: .*again"):
        hugging_face.load(folder)


def test_missing_tensors_are_named_with_their_file(folder):
    edit_tensors(folder, remove=["model.layers.0.mlp.up_proj.weight"])
    told = r"model.safetensors: needs .*: model.layers.0.mlp.up_proj.weight\.$"
    with pytest.raises(ValueError, match=told):
        hugging_face.load(folder)


def test_a_missing_head_hints_at_tied_embeddings(folder):
    edit_tensors(folder, remove=["lm_head.weight"])
    with pytest.raises(ValueError, match="tie_word_embeddings must be true"):
        hugging_face.load(folder)


def test_many_missing_tensors_are_counted(folder):
    edit(folder, num_hidden_layers=3)
    with pytest.raises(ValueError, match=r"layers.1.input_layernorm.*and 14 more"):
        hugging_face.load(folder)


def test_unexpected_tensors_are_named(folder):
    # A Llama configuration beside Qwen2 weights: ignored biases would change logits.
    bias = {"model__layers__0__self_attn__q_proj__bias": np.ones(12, np.float32)}
    edit_tensors(folder, **bias)
    with pytest.raises(ValueError, match=r"no place for: .*q_proj.bias; this is ano"):
        hugging_face.load(folder)


def test_rotary_frequencies_of_old_checkpoints_are_no_obstacle(folder):
    name = "model__layers__0__self_attn__rotary_emb__inv_freq"
    edit_tensors(folder, **{name: np.ones(3, np.float32)})
    hugging_face.load(folder)


def test_wrong_shapes_are_named(folder):
    edit_tensors(folder, model__embed_tokens__weight=np.ones((12, 11), np.float32))
    told = r"model.embed_tokens.weight is \[12, 11\], expected \[11, 12\]"
    with pytest.raises(ValueError, match=told):
        hugging_face.load(folder)


def test_quantised_tensors_are_named(folder):
    name = "model__layers__0__mlp__up_proj__weight"
    edit_tensors(folder, **{name: np.ones((20, 12), np.int8)})
    with pytest.raises(ValueError, match=r"F64, got .*up_proj.weight in I8; load"):
        hugging_face.load(folder)


def test_a_head_beside_tied_embeddings_must_be_equal_to_them(folder):
    edit(folder, tie_word_embeddings=True)
    with pytest.raises(ValueError, match=r"lm_head.weight must equal model.embed_tok"):
        hugging_face.load(folder)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, lm_head__weight=embedding.copy())
    config, params = hugging_face.load(folder)
    assert config.tie_embeddings and "head" not in params


def test_broken_indices_are_named(tmp_path):
    folder = tmp_path / "model"
    hugging_face.save(folder, SMALL, small_params(), shard_bytes=2000)
    index = folder / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    shard = good["weight_map"]["lm_head.weight"]

    def fails(told, **weight_map):
        changed = {k.replace("__", "."): v for k, v in weight_map.items()}
        weight_map = {**good["weight_map"], **changed}
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(ValueError, match=told):
            hugging_face.load(folder)

    fails(r"index.json: shard 'gone.safetensors' is missing", x="gone.safetensors")
    fails(r"shard '../model/model-0.* is missing", x=f"../model/{shard}")
    fails(r"only listed or only held: x in model-0", x=shard)
    fails(r"shard '7' is missing", x=7)
    (folder / shard).unlink()
    fails(f"shard '{shard}' is missing")
    index.write_text("{}")
    with pytest.raises(ValueError, match="must hold an object weight_map, got None"):
        hugging_face.load(folder)
    index.write_text('{"weight_map": ')
    with pytest.raises(ValueError, match=r"index.json: not valid JSON"):
        hugging_face.load(folder)


def refuses(tmp_path, told, config=SMALL, params=None, **options):
    params = small_params() if params is None else params
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=told):
        hugging_face.save(tmp_path / "model", config, params, **options)
    assert sorted(tmp_path.rglob("*")) == before


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
    refuses(tmp_path, "'qwen2' needs qkv_bias=True, got False", model_type="qwen2")
    refuses(tmp_path, "one of llama, qwen2, mistral, got 'gpt2'", model_type="gpt2")
    odd = dataclasses.replace(SMALL, d_model=13)
    refuses(tmp_path, "pass model_type='mistral'", config=odd, params=small_params(odd))


def test_extra_keys_are_kept_and_may_not_contradict(tmp_path):
    refuses(tmp_path, "extra must leave {'vocab_size': 11}", extra={"vocab_size": 9})
    linear = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    refuses(tmp_path, "extra: of rope_scaling only", extra=linear)
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
