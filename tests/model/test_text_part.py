"""The language model of a multimodal folder, against transformers' given text alone."""

import json

import jax
import numpy as np
import pytest
from hugging_face_models import (
    GROUPED,
    MODELS,
    VOCAB,
    batch,
    measured,
    randomised,
    torch_logits,
)
from safetensors.numpy import load_file, save_file

from rljax.model import hugging_face
from rljax.model.hugging_face import config as config_json
from rljax.model.hugging_face import metadata, text_part

WINDOW = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}


def gemma3():
    import transformers

    text = {**MODELS["gemma3"][1], "vocab_size": VOCAB, "pad_token_id": None}
    config = transformers.Gemma3Config(
        text_config=text,
        vision_config={**WINDOW, **VISION},
        image_token_index=VOCAB,
        mm_tokens_per_image=4,
    )
    config.text_config._attn_implementation = "eager"
    return transformers.Gemma3ForConditionalGeneration(config)


def mistral3():
    import transformers

    text = {
        **GROUPED,
        "model_type": "mistral",
        "vocab_size": VOCAB,
        "num_hidden_layers": 2,
        "sliding_window": None,
        "head_dim": 8,
        "tie_word_embeddings": False,
    }
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config={**WINDOW, **VISION, "model_type": "pixtral", "head_dim": 8},
        image_token_index=VOCAB,
        tie_word_embeddings=False,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


@pytest.fixture(
    scope="module", params=[gemma3, pytest.param(mistral3, marks=pytest.mark.slow)]
)
def both(request, tmp_path_factory):
    """(transformers' model, its folder)."""
    pytest.importorskip("torch")
    model, folder = randomised(request.param), tmp_path_factory.mktemp("multimodal")
    model.save_pretrained(folder)
    return model, folder


def renamed(folder, to, name):
    """The folder as `to`, each tensor by the name that `name` returns."""
    tensors = load_file(folder / "model.safetensors")
    to.mkdir()
    (to / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = {name(key): value for key, value in tensors.items()}
    save_file(tensors, to / "model.safetensors", {"format": "pt"})


def test_logits_are_those_of_the_whole_model_given_text(both):
    model, folder = both
    prompts, samples = batch()
    logits, *_ = measured(*hugging_face.load(folder), prompts, samples)
    want = torch_logits(model, prompts, samples).detach().numpy()
    assert np.std(want) > 0.5
    np.testing.assert_allclose(logits, want, atol=1e-4, rtol=1e-5)


def test_it_is_saved_as_a_text_model_that_transformers_loads(both, tmp_path):
    import transformers

    model, folder = both
    config, params = hugging_face.load(folder)
    said = metadata.read(folder)
    hugging_face.save(tmp_path / "saved", config, params, metadata=said)
    entries = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert not {"text_config", "vision_config"} & entries.keys()
    text = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation="eager"
    )
    assert type(text).__name__ == entries["architectures"][0]
    prompts, samples = batch()
    np.testing.assert_allclose(
        torch_logits(text.eval(), prompts, samples).detach().numpy(),
        torch_logits(model, prompts, samples).detach().numpy(),
        atol=1e-5,
    )


def test_both_spellings_of_its_tensors_are_read(both, tmp_path):
    # As published, and as the modules of transformers 5 are called.
    _, folder = both
    published = {"language_model.model.": "model.language_model."}
    published |= {"language_model.lm_head": "lm_head"}

    def modules(key):
        for old, new in published.items():
            if key.startswith(old):
                return key.replace(old, new, 1)
        return f"model.{key}"

    renamed(folder, tmp_path / "modules", modules)
    found = [hugging_face.load(x)[1] for x in (folder, tmp_path / "modules")]
    jax.tree.map(np.testing.assert_array_equal, *found)


def test_a_tensor_that_nobody_knows_is_still_refused(both, tmp_path):
    _, folder = both

    def odd(key):
        return key.replace("multi_modal_projector", "audio_projector")

    renamed(folder, tmp_path / "odd", odd)
    with pytest.raises(ValueError, match="does not use: audio_projector"):
        hugging_face.load(tmp_path / "odd")


@pytest.mark.parametrize("text", [None, {"model_type": "gemma2"}])
def test_a_text_config_of_another_family_is_named(tmp_path, text):
    entries = {"model_type": "gemma3", "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"text_config must .*gemma3_text"):
        hugging_face.load(tmp_path)


def test_a_published_file_leaves_much_to_the_defaults():
    # config.json of google/gemma-3-4b-it, the text part and what stands beside it.
    said = {
        "eos_token_id": [1, 106],
        "model_type": "gemma3",
        "text_config": {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "model_type": "gemma3_text",
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        "torch_dtype": "bfloat16",
    }
    entries = text_part.entries(said, "config.json")
    assert entries["eos_token_id"] == [1, 106] and entries["torch_dtype"] == "bfloat16"
    read = config_json.read(entries, "config.json")
    assert (read.vocab_size, read.num_heads, read.num_kv_heads) == (262_208, 8, 4)
    assert read.head_dim == 256 and read.tie_embeddings
