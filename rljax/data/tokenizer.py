"""Tokenizers: Hugging Face folders, and a character tokenizer for small tasks.

`transformers` is imported inside the functions, so that `import rljax` stays cheap.
"""

import os
import pathlib
from typing import TYPE_CHECKING

from rljax import strict_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END = "<pad>", "<end>"
SPECIAL_TOKENS = (PAD, END)  # ids 0 and 1; the i-th character has id 2 + i
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_DESCRIPTIONS = (
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def character_tokenizer(characters: str) -> "PreTrainedTokenizerFast":
    """A tokenizer with one token per character, a padding and an end token.

    Id 0 is padding, 1 the end token, `2 + i` is `characters[i]`. Decoding joins without
    spaces; encoding any other character raises. There is no begin token, as prompts are
    never empty. `save_pretrained(folder)` writes a folder that `load_tokenizer` reads.

    Args:
      characters: the vocabulary, each character once.

    Raises:
      ValueError: if `characters` is empty or contains a character twice.
    """
    repeated = sorted({c for c in characters if characters.count(c) > 1})
    if not characters or repeated:
        raise ValueError(
            "characters needs at least one character and each only once, got"
            f" {characters!r} with {repeated} repeated; pass every character once."
        )
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *characters))}
    # WordLevel without an unknown token raises on unknown characters. BPE without
    # merges would drop them silently.
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary))
    one_character = tokenizers.Regex(r"[\s\S]")  # a dot would leave out newlines
    tokenizer.pre_tokenizer = pre_tokenizers.Split(one_character, "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str | os.PathLike) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local Hugging Face folder; never uses the network.

    Raises:
      ValueError: with the folder or file, if the folder is missing, holds no tokenizer
        or a broken one, or if the tokenizer has no end token, without which no
        completion could finish.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"tokenizer path must be a local folder, got {str(folder)!r}, which is"
            f" {'a file' if folder.exists() else 'missing'}; download the model first"
            " and pass the folder that holds its tokenizer.json."
        )
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        found = sorted(entry.name for entry in folder.iterdir())
        raise ValueError(
            f"{str(folder)!r} must hold one of {', '.join(_TOKENIZER_FILES)}, found"
            f" {found}; copy the tokenizer files of the model there, or write them"
            " with tokenizer.save_pretrained(folder)."
        )
    # transformers reads these as well, but its errors do not name the file.
    for name in _DESCRIPTIONS:
        if (folder / name).is_file():
            strict_json.read_file(folder / name)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises no finer kind
        raise ValueError(
            f"{_broken_file(folder)}: transformers must be able to read the tokenizer,"
            f" but {type(error).__name__}: {error}; copy the files of the model again."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer in {str(folder)!r} must have an end token, got none; set"
            ' "eos_token" in its tokenizer_config.json to the token that ends an'
            " answer."
        )
    return tokenizer


def _broken_file(folder: pathlib.Path) -> str:
    """The file that is broken, or all that may be, as transformers does not say."""
    import tokenizers

    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            tokenizers.Tokenizer.from_file(str(file))
        except Exception:  # tokenizers raises no finer kind
            return str(file)
    read = (*_DESCRIPTIONS, *_TOKENIZER_FILES, "merges.txt", "chat_template.jinja")
    names = [name for name in read if (folder / name).is_file() and name != file.name]
    return f"{folder}: {' or '.join(names)}"
