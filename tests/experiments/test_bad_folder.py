"""A user's mistakes with a folder: one clear error each, before anything compiles."""

import json
import sys

import numpy as np
import pytest
from hugging_face_folders import TRAINABLE, edit, edit_tensors, small_params

from experiments import train
from rljax.data import tokenizer
from rljax.model import hugging_face

WORDS = tokenizer.character_tokenizer("0123456789+=\nuse:")
SIZES = {
    **{"--num-prompts": 4, "--num-samples": 2, "--max-tokens": 4},
    **{"--max-prompt-tokens": 24, "--num-validation": 4, "--num-test": 4},
}


@pytest.fixture
def folder(tmp_path):
    """A sound model in two shards, beside problems for it."""
    path = tmp_path / "model"
    params = small_params(TRAINABLE)
    hugging_face.save(path, TRAINABLE, params, tokenizer=WORDS, shard_bytes=5000)
    (path / "chat_template.jinja").write_text("{{ messages[0].content }}=")
    rows = [{"question": f"{i}+{i}", "answer": str(2 * i)} for i in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def started(folder, monkeypatch, *more):
    """What the command line says of a folder; the run itself is left out."""
    given = {"--model": folder, "--data": folder.parent / "x.jsonl", **SIZES}
    flags = [str(x) for pair in given.items() for x in pair]
    monkeypatch.setattr(sys, "argv", ["train", "--no-compilation-cache", *flags, *more])
    monkeypatch.setattr(train.cli.experiment, "run", lambda made, *_, **__: made)
    monkeypatch.chdir(folder.parent)
    train.main()


def shards(folder):
    return sorted(folder.glob("model-*.safetensors"))


def cut(folder):
    content = shards(folder)[1].read_bytes()
    shards(folder)[1].write_bytes(content[: len(content) // 2])


def pickled(folder):
    for file in [*shards(folder), folder / "model.safetensors.index.json"]:
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def quantised(folder):
    (folder / "model.safetensors.index.json").unlink()
    params = small_params(TRAINABLE)
    hugging_face.save(folder / "one", TRAINABLE, params)
    (folder / "one" / "model.safetensors").rename(folder / "model.safetensors")
    name = "model__layers__0__mlp__up_proj__weight"
    edit_tensors(folder, **{name: np.zeros((16, 16), np.int8)})


def wide(folder):
    words = tokenizer.load_tokenizer(folder)
    words.add_tokens([f"<{i}>" for i in range(9)])
    words.save_pretrained(folder)


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


MISTAKES = {
    "an unknown family": (
        lambda folder: edit(folder, model_type="mamba"),
        (),
        r"config\.json: model_type must be one of llama, .*qwen3_moe, got 'mamba'",
    ),
    "too many layers for the weights": (
        lambda folder: edit(folder, num_hidden_layers=2),
        (),
        r"index\.json: needs tensors it does not have: model\.layers\.1\.",
    ),
    "another width than the weights": (
        lambda folder: edit(folder, intermediate_size=24),
        (),
        r"shapes contradict config\.json: .*mlp\.\w+_proj\.weight is \[",
    ),
    "a tokenizer larger than the embedding": (wide, (), r"at most vocab_size=20 tok"),
    "a shard that is cut off": (cut, (), r"model-00002-of-.* broken: .*download it"),
    "a shard that is missing": (
        lambda folder: shards(folder)[0].unlink(),
        (),
        r"shard 'model-00001-of-.*' is missing; download",
    ),
    "pickled weights": (pickled, (), "reading pickles may run code; convert"),
    "quantised weights": (quantised, (), "load the model's unquantised weights"),
    "chat without a template": (
        lambda folder: (folder / "chat_template.jinja").unlink(),
        ("--chat",),
        r"x\.jsonl: the tokenizer must have a chat template",
    ),
    "a template that drops the question": (
        template("use:"),
        ("--chat",),
        "put the user's message into the prompt",
    ),
    "a template that drops the system's message": (
        template(
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
        ),
        ("--chat", "--system", "0"),
        "put the system's message into the prompt",
    ),
    "a stop string that no token spells": (
        lambda folder: None,
        ("--stop", "Question"),
        r"--stop, .*'Question': no sequence of the tokenizer's tokens holds it",
    ),
    "prompts that are all too long": (
        lambda folder: None,
        ("--max-prompt-tokens", "2"),
        r"x\.jsonl: .*kept 0 of 30 .*raise --max-prompt-tokens or --max-tokens\.",
    ),
    "a folder that is nowhere": (
        lambda folder: folder.rename(folder.with_name("moved")),
        (),
        r"must be a local folder, got '.*model', which is missing; download",
    ),
}


@pytest.mark.parametrize("mistake, flags, told", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_before_anything_compiles(
    folder, monkeypatch, compilations, mistake, flags, told
):
    mistake(folder)
    before = sorted(folder.parent.iterdir())
    count = len(compilations)
    with pytest.raises(SystemExit, match=rf"(?s)^error: .*{told}"):
        started(folder, monkeypatch, *flags)
    assert len(compilations) == count
    assert sorted(folder.parent.iterdir()) == before  # no run folder


def test_a_sound_folder_is_taken_and_compiles_nothing_before_it_runs(
    folder, monkeypatch, compilations
):
    # Else what is refused later than these would come after a compilation.
    count = len(compilations)
    started(folder, monkeypatch, "--chat", "--stop", "use")
    assert len(compilations) == count
