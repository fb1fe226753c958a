"""LoRA adapters as PEFT's folders: names by hand, torch's products, PEFT itself."""

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

SPEC = Lora(rank=3, alpha=5.0, rank_stabilised=True, targets=("q", "v", "o", "down"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(torch model, its folder, config, base, parameters with adapters)."""
    model = torch_model("llama_grouped")
    folder = tmp_path_factory.mktemp("base") / "model"
    model.save_pretrained(folder)
    config, base = hugging_face.load(folder)
    params = lora.with_adapters(base, SPEC, jax.random.key(0))
    draw = np.random.default_rng(0)

    def move(path, x):
        new = jnp.asarray(0.2 * draw.normal(size=x.shape), jnp.float32)
        return new if lora.is_adapter(path_names(path)) else x

    return model, folder, config, base, jax.tree.map_with_path(move, params)


def path_names(path):
    return tuple(entry.key for entry in path)


def logp(config, params):
    policy = lora.adapted(decoder_policy(config), SPEC)
    return jax.jit(lambda *a: policy.measure(*a).logp)(params, *batch())


def test_names_shapes_and_configuration_are_those_of_peft(both, tmp_path):
    # As peft 0.21 writes them for a Llama of width 48, 6 heads of 8, 2 of them keys'.
    adapter.save(tmp_path / "a", both[4], SPEC, base_model="base")
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "adapter_model.safetensors")
    one = "base_model.model.model.layers.1."
    shapes = {k.removeprefix(one): v.shape for k, v in tensors.items() if one in k}
    assert len(tensors) == 2 * len(shapes)
    assert shapes == {
        "self_attn.q_proj.lora_A.weight": (3, 48),
        "self_attn.q_proj.lora_B.weight": (48, 3),
        "self_attn.v_proj.lora_A.weight": (3, 48),
        "self_attn.v_proj.lora_B.weight": (16, 3),
        "self_attn.o_proj.lora_A.weight": (3, 48),
        "self_attn.o_proj.lora_B.weight": (48, 3),
        "mlp.down_proj.lora_A.weight": (3, 80),
        "mlp.down_proj.lora_B.weight": (48, 3),
    }
    entries = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert entries["peft_type"] == "LORA"
    assert (entries["r"], entries["lora_alpha"], entries["use_rslora"]) == (3, 5, True)
    assert entries["target_modules"] == ["q_proj", "v_proj", "o_proj", "down_proj"]


def test_what_is_saved_loads_bit_for_bit(both, tmp_path):
    params = both[4]
    adapter.save(tmp_path / "a", params, SPEC)
    spec, adapters = adapter.load(tmp_path / "a")
    assert spec == SPEC
    want, _ = frozen.split(params, lora.is_adapter)
    jax.tree.map(np.testing.assert_array_equal, adapters, want)


def test_torch_computes_the_same_from_the_files(both, tmp_path):
    # W + alpha / sqrt(r) B A with torch's own matrices.
    torch = pytest.importorskip("torch")
    model, folder, config, _, params = both
    adapter.save(tmp_path / "a", params, SPEC)
    tensors = safetensors.numpy.load_file(tmp_path / "a" / "adapter_model.safetensors")
    model = type(model).from_pretrained(folder)
    state = model.state_dict()
    for name in [name for name in tensors if "lora_A" in name]:
        b = tensors[name.replace("lora_A", "lora_B")]
        more = torch.tensor(5.0 / 3**0.5 * b @ tensors[name])
        state[name.removeprefix("base_model.model.").replace("lora_A.", "")] += more
    with torch.no_grad():
        want = torch_logp(model, *batch()).numpy()
        before = torch_logp(both[0], *batch()).numpy()
    assert np.max(np.abs(want - before)) > 0.1
    np.testing.assert_allclose(logp(config, params), want, atol=2e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_peft_reads_what_is_saved_and_what_peft_saves_is_read(both, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import torch
    import transformers

    _, folder, config, base, params = both
    adapter.save(tmp_path / "ours", params, SPEC, base_model=str(folder))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(model, tmp_path / "ours")
    with torch.no_grad():
        want = torch_logp(model.eval(), *batch()).numpy()
    np.testing.assert_allclose(logp(config, params), want, atol=2e-4)
    model.save_pretrained(tmp_path / "theirs")
    spec, adapters = adapter.load(tmp_path / "theirs")
    assert spec == SPEC
    read = frozen.joined(adapters, base)
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "use_dora must be False"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern must be {}"),
        ({"target_modules": "all-linear"}, "target_modules must be a list"),
        ({"target_modules": ["q_proj"]}, "missing or not expected.*mlp.down_proj"),
        ({"r": 4}, "must have rank 4"),
        ({"r": None}, "r and lora_alpha must be numbers"),
    ],
)
def test_adapters_of_another_kind_are_refused(both, tmp_path, change, message):
    adapter.save(tmp_path / "a", both[4], SPEC)
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        adapter.load(tmp_path / "a")


def test_a_taken_folder_is_not_written_over_and_a_broken_file_is_named(both, tmp_path):
    adapter.save(tmp_path / "a", both[4], SPEC)
    with pytest.raises(ValueError, match="must not exist yet"):
        adapter.save(tmp_path / "a", both[4], SPEC)
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: broken"):
        adapter.load(tmp_path / "a")
