"""Files of weights: whole, in shards, and broken in every way."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hugging_face_folders import SMALL, edit, edit_tensors, small_params
from safetensors.numpy import load_file

from rljax.model import hugging_face


def test_importing_policies_imports_neither_torch_nor_transformers():
    code = (
        "import sys, rljax.model.hugging_face.weights as h;"
        "print(sorted({'torch', 'transformers', 'tokenizers'} & sys.modules.keys()))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[]"


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
    with pytest.raises(ValueError, match=r"does not use: .*q_proj.bias; this is ano"):
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
