"""Character tokenizers, and tokenizer folders with their mistakes."""

import json
import subprocess
import sys

import pytest

from rljax.data import tokenizer

CHARACTERS = "0123456789+= \n"


def test_ids_are_pad_end_and_then_the_characters_in_order():
    made = tokenizer.character_tokenizer(CHARACTERS)
    assert (made.pad_token_id, made.eos_token_id, len(made)) == (0, 1, 16)
    # An implementation that adds begin or end tokens would give more than 5 ids.
    assert made("10+9=")["input_ids"] == [3, 2, 12, 11, 13]


def test_a_saved_folder_loads_to_the_same_tokenizer(tmp_path):
    made = tokenizer.character_tokenizer(CHARACTERS)
    made.save_pretrained(tmp_path)
    loaded = tokenizer.load_tokenizer(tmp_path)
    text = "1 +2 =\n\n3  4"
    assert loaded(text)["input_ids"] == made(text)["input_ids"]
    # Decoders that join words give "1   + 2"; clean-up would eat spaces.
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.decode([3, 1, 0]) == "1<end><pad>"
    assert loaded.decode([3, 1, 0], skip_special_tokens=True) == "1"
    assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


def test_an_unknown_character_raises_instead_of_vanishing():
    made = tokenizer.character_tokenizer("0123456789")
    with pytest.raises(Exception, match="UNK"):  # tokenizers raises a bare Exception
        made("1x2")


@pytest.mark.parametrize(("characters", "told"), [("", "''"), ("abca", r"\['a'\]")])
def test_characters_must_be_given_once_each(characters, told):
    with pytest.raises(ValueError, match=told):
        tokenizer.character_tokenizer(characters)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere', which is missing; download"):
        tokenizer.load_tokenizer(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"which is a file; .* the folder that holds"):
        tokenizer.load_tokenizer(tmp_path / "tokenizer.json")


def test_a_folder_without_a_tokenizer_says_what_it_found(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ValueError, match=r"found \['model.safetensors'\]; copy"):
        tokenizer.load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer.character_tokenizer("ab").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="must have an end token, got none"):
        tokenizer.load_tokenizer(tmp_path)


def test_importing_data_and_tokenizer_stays_cheap():
    # transformers and grain cost more to import than jax; they load when called.
    code = (
        "import sys, rljax.data, rljax.data.tokenizer;"
        "sys.exit(str({'transformers', 'grain'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


def cut(text):
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("tokenizer.json", lambda text: ""),
        ("tokenizer.json", cut),
        ("tokenizer.json", lambda text: "null"),
        ("tokenizer.json", lambda text: "[1]"),
        ("tokenizer.json", lambda text: "{}"),
        ("tokenizer.json", lambda text: text.replace("WordLevel", "Guess")),
        ("tokenizer_config.json", lambda text: "null"),
        ("tokenizer_config.json", lambda text: "[]"),
        ("tokenizer_config.json", cut),
        # transformers reads it, too: 'list' object has no attribute 'get'.
        ("config.json", lambda text: "[]"),
        ("config.json", lambda text: "null"),
        ("config.json", lambda text: "{"),
        ("special_tokens_map.json", lambda text: "[]"),
        ("chat_template.jinja", lambda text: "{{ \udcff }}"),
        ("added_tokens.json", lambda text: "null"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, broken):
    tokenizer.character_tokenizer("ab").save_pretrained(tmp_path)
    file = tmp_path / name
    text = broken(file.read_text() if file.exists() else "")
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"[/ ]{name.replace('.', '[.]')}\b"):
        tokenizer.load_tokenizer(tmp_path)
