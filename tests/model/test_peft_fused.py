"""Adapters of tensors that hold several matrices: Phi-3's, as PEFT has them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hugging_face_models import batch, torch_logp, torch_model

from rljax.model import decoder_policy, hugging_face
from rljax.model.hugging_face import adapter
from rljax.policy import frozen, lora
from rljax.policy.lora import Lora

FUSED = {"qkv_proj": ("q", "k", "v"), "gate_up_proj": ("gate", "up")}


@pytest.fixture(scope="module", params=[False, True])
def both(request, tmp_path_factory):
    """(a Phi-3's folder, config, base, spec, parameters with adapters)."""
    folder = tmp_path_factory.mktemp("base") / "model"
    torch_model("phi3_partial").save_pretrained(folder)
    config, base = hugging_face.load(folder)
    spec = Lora(rank=3, alpha=5.0, rank_stabilised=request.param)
    params = lora.with_adapters(base, spec, jax.random.key(0))
    draw = np.random.default_rng(0)

    def move(path, x):
        new = jnp.asarray(0.2 * draw.normal(size=x.shape), jnp.float32)
        return new if lora.is_adapter(tuple(entry.key for entry in path)) else x

    return folder, config, base, spec, jax.tree.map_with_path(move, params)


def written(params, spec, folder):
    adapter.save(folder, params, spec, model_type="phi3")
    tensors = safetensors.numpy.load_file(folder / adapter.WEIGHTS)
    return tensors, json.loads((folder / adapter.CONFIG).read_text())


def test_one_adapter_of_the_ranks_sum_has_the_products_of_all(both, tmp_path):
    _, _, _, spec, params = both
    tensors, entries = written(params, spec, tmp_path / "a")
    assert set(entries["target_modules"]) == {*FUSED, "o_proj", "down_proj"}
    assert entries["rank_pattern"] == {"qkv_proj": 9, "gate_up_proj": 6}
    for leaf, names in FUSED.items():
        module = "self_attn." + leaf if leaf == "qkv_proj" else "mlp." + leaf
        name = f"base_model.model.model.layers.1.{module}"
        a, b = (tensors[f"{name}.lora_{x}.weight"] for x in "AB")
        # PEFT's scale; with the base's alpha it would be a third of ours.
        rank, alpha = entries["rank_pattern"][leaf], entries["alpha_pattern"][leaf]
        scale = alpha / (rank**0.5 if spec.rank_stabilised else rank)
        parts = [params["layers"][x] for x in names]
        want = [spec.scale * (x["lora_a"][1] @ x["lora_b"][1]).T for x in parts]
        np.testing.assert_allclose(scale * b @ a, np.concatenate(want), atol=1e-6)


def test_what_is_saved_loads_bit_for_bit(both, tmp_path):
    _, config, _, spec, params = both
    adapter.save(tmp_path / "a", params, spec, model_type="phi3")
    found, adapters = adapter.load(tmp_path / "a", config)
    assert found == spec
    want, _ = frozen.split(params, lora.is_adapter)
    jax.tree.map(np.testing.assert_array_equal, adapters, want)
    with pytest.raises(ValueError, match="got no config; pass that of the base"):
        adapter.load(tmp_path / "a")


def shared(both, tmp_path):
    """An adapter as PEFT makes it: one A [3, 64] for queries, keys and values."""
    _, config, _, spec, params = both
    _, entries = written(params, spec, tmp_path / "theirs")
    draw = np.random.default_rng(1)
    rows = config.d_model + 2 * config.num_kv_heads * config.head_dim
    entries |= {"target_modules": ["qkv_proj"], "rank_pattern": {}, "alpha_pattern": {}}
    kept = {}
    for i in range(config.num_layers):
        name = f"base_model.model.model.layers.{i}.self_attn.qkv_proj.lora_"
        size = {"A": (3, config.d_model), "B": (rows, 3)}
        kept |= {
            f"{name}{x}.weight": draw.normal(size=size[x]).astype(np.float32)
            for x in size
        }
    safetensors.numpy.save_file(kept, tmp_path / "theirs" / adapter.WEIGHTS)
    (tmp_path / "theirs" / adapter.CONFIG).write_text(json.dumps(entries))
    return config, kept, tmp_path / "theirs"


def test_a_shared_factor_goes_to_each_target(both, tmp_path):
    config, kept, folder = shared(both, tmp_path)
    spec, adapters = adapter.load(folder, config)
    assert spec.targets == ("q", "k", "v") and spec.rank == 3
    products = [
        x["lora_a"][1] @ x["lora_b"][1] for x in map(adapters["layers"].get, "qkv")
    ]
    name = "base_model.model.model.layers.1.self_attn.qkv_proj.lora_"
    want = kept[f"{name}B.weight"] @ kept[f"{name}A.weight"]
    np.testing.assert_allclose(np.concatenate(products, 1).T, want, atol=1e-5)


def test_what_cannot_be_taken_apart_is_refused(both, tmp_path):
    _, config, _, spec, params = both
    some = Lora(rank=3, alpha=5.0, targets=("q", "v", "o", "down"))
    with pytest.raises(ValueError, match=r"name all of q, k, v or none.*got no k; add"):
        adapter.save(tmp_path / "a", params, some, model_type="phi3")
    adapter.require_whole(Lora(rank=1, alpha=1, targets=("o", "down")), "phi3")
    adapter.require_whole(some, "qwen2_moe")
    tensors, entries = written(params, spec, tmp_path / "a")
    name = "base_model.model.model.layers.0.mlp.gate_up_proj.lora_B.weight"
    tensors[name][0, 5] = 1.0  # the gate's row, the column of up
    file = tmp_path / "a" / adapter.WEIGHTS
    file.unlink()
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(ValueError, match="must be block-diagonal"):
        adapter.load(tmp_path / "a", config)
    entries["alpha_pattern"]["qkv_proj"] = 1.0
    (tmp_path / "a" / adapter.CONFIG).write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"alpha_pattern must be \{\}, or"):
        adapter.load(tmp_path / "a", config)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_computes_the_same(both, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import torch
    import transformers

    folder, config, base, spec, params = both
    adapter.save(tmp_path / "ours", params, spec, model_type="phi3")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "ours")
    with torch.no_grad():
        want = torch_logp(model.eval(), *batch()).numpy()
    policy = lora.adapted(decoder_policy(config), spec)
    got = jax.jit(lambda *a: policy.measure(*a).logp)(params, *batch())
    np.testing.assert_allclose(got, want, atol=2e-4)
    model.save_pretrained(tmp_path / "theirs")
    found, adapters = adapter.load(tmp_path / "theirs", config)
    assert found == spec
    read = frozen.joined(adapters, base)
    jax.tree.map(np.testing.assert_array_equal, read, params)
