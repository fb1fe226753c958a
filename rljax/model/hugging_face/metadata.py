"""The content of a Hugging Face folder beside the weights.

It holds the other keys of config.json, the generation config, chat templates, the
licence and the tokenizer's files. Training does not need most of it, but users of the
trained policy do, so it is copied unchanged.
"""

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from rljax import check, strict_json
from rljax.model.hugging_face import text_part

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, GENERATION = "config.json", "generation_config.json"
_ADAPTER = "adapter_config.json"
_KEPT = (
    GENERATION,
    "chat_template.*",
    "additional_chat_templates/*",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)


class Metadata(NamedTuple):
    """What `hugging_face.save` copies from the folder of the base model.

    folder: path of that folder, for messages.
    config: all entries of config.json; of a multimodal model, its language model's.
    generation: all entries of generation_config.json; empty if there is none.
    files: path within the folder -> content, of files that are copied unchanged.
    tokenizer: the same for the tokenizer's files. They are copied, because files that
      transformers 5 writes lack keys and older releases cannot read them.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    generation: dict[str, Any]
    files: dict[str, bytes]
    tokenizer: dict[str, bytes]


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """`path` as a folder with a model; raises ValueError if it is missing or a LoRA."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"path must be a local folder, got {str(folder)!r}, which is"
            f" {'a file' if folder.exists() else 'missing'}; download the model first."
        )
    if (folder / _ADAPTER).is_file() and not (folder / CONFIG).is_file():
        raise ValueError(
            f"{str(folder)!r} must hold a model, but holds a LoRA adapter: {_ADAPTER}"
            f" and no {CONFIG}; merge it into its base model first."
        )
    return folder


def config_entries(folder: pathlib.Path) -> dict[str, Any]:
    """The entries of config.json; of a multimodal model, its language model's.

    Raises:
      ValueError: naming the file, if it is missing or broken.
    """
    file = folder / CONFIG
    return text_part.entries(strict_json.read_file(file), file)


def read(path: str | os.PathLike) -> Metadata:
    """Reads a folder's metadata into memory, because a run may outlive the folder.

    Raises:
      ValueError: if there is no folder; naming the file, if config.json is missing, or
        config.json or generation_config.json is broken.
    """
    folder = local_folder(path)

    def contents(kinds):
        found = sorted(x for kind in kinds for x in folder.glob(kind) if x.is_file())
        return {x.relative_to(folder).as_posix(): x.read_bytes() for x in found}

    generation = folder / GENERATION
    return Metadata(
        folder,
        config_entries(folder),
        strict_json.read_file(generation) if generation.is_file() else {},
        contents(_KEPT),
        contents(_TOKENIZER),
    )


def write_files(
    folder: pathlib.Path, metadata: Metadata, *, with_tokenizer: bool
) -> None:
    """Writes the copied files, except those that exist in the folder already."""
    tokenizer = metadata.tokenizer if with_tokenizer else {}
    for name, content in {**metadata.files, **tokenizer}.items():
        file = folder / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)


def stop_tokens(
    tokenizer: "PreTrainedTokenizerBase", metadata: Metadata, vocab_size: int
) -> tuple[int, ...]:
    """All end tokens: the tokenizer's, config.json's and generation_config.json's.

    Chat models have several: one ends a turn, another a document, and either may be the
    tokenizer's.

    Raises:
      ValueError: naming the file, if an end token is no id of the vocabulary.
    """
    said = {"the tokenizer": tokenizer.eos_token_id}
    for name, entries in ((CONFIG, metadata.config), (GENERATION, metadata.generation)):
        said[str(metadata.folder / name)] = entries.get("eos_token_id")
    stops: list[int] = []
    for source, ids in said.items():
        ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
        check.stop_tokens(ids, vocab_size, f"eos_token_id of {source}")
        stops.extend(ids)
    return tuple(dict.fromkeys(stops))


def stop_strings(metadata: Metadata) -> tuple[str, ...]:
    """The stop strings in generation_config.json.

    Raises:
      ValueError: naming the file, if one is not a text.
    """
    said = metadata.generation.get("stop_strings")
    texts = [] if said is None else said if isinstance(said, list) else [said]
    for text in texts:
        if not isinstance(text, str) or not text or strict_json.no_text(text):
            raise ValueError(
                f"{metadata.folder / GENERATION}: stop_strings must be texts, got"
                f" {text!r}; take the file published with the weights."
            )
    return tuple(dict.fromkeys(texts))


def with_stop_strings(
    metadata: Metadata, texts: tuple[str, ...], stops: tuple[int, ...]
) -> Metadata:
    """`metadata` of a policy that was trained with these stop strings.

    Nothing changes if they are the folder's own. transformers' `generate` applies stop
    strings only if it gets its `tokenizer` argument.

    Args:
      metadata: of the base model's folder.
      texts: stop strings.
      stops: end tokens; written only if the folder has no generation_config.json,
        because generation would ignore config.json's once that file exists.
    """
    if texts == stop_strings(metadata):
        return metadata
    said = metadata.generation if metadata.generation else {"eos_token_id": [*stops]}
    generation = {**said, "stop_strings": [*texts]}
    content = json.dumps(generation, indent=2, sort_keys=True) + "\n"
    files = {**metadata.files, GENERATION: content.encode()}
    return metadata._replace(generation=generation, files=files)


def max_positions(metadata: Metadata) -> int | None:
    """`max_position_embeddings` in tokens, or None if config.json has no such key.

    Raises:
      ValueError: naming the file, if the value is not a number of tokens.
    """
    limit = metadata.config.get("max_position_embeddings")
    if limit is None:
        return None
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(
            f"{metadata.folder / CONFIG}: max_position_embeddings must be a whole"
            f" number above 0, got {limit!r}; take the file published with the weights."
        )
    return limit
