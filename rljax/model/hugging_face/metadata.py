"""What a Hugging Face folder says beside weights and tokenizer.

The configuration's other keys, how to generate and to chat, and the licence. Nothing is
computed with them, but whoever loads the trained policy needs them as before.
"""

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any, NamedTuple

from rljax import check, strict_json

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
    """What `hugging_face.save` hands on.

    folder: where it is from, for messages.
    config: all entries of config.json.
    generation: all entries of generation_config.json; empty if there is none.
    files: path within the folder -> content, of files that are kept as they are.
    tokenizer: the same of the tokenizer's, for a policy that keeps it: written anew by
      transformers 5 they would lose keys, and older releases could not read them.
    """

    folder: pathlib.Path
    config: dict[str, Any]
    generation: dict[str, Any]
    files: dict[str, bytes]
    tokenizer: dict[str, bytes]


def local_folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder of a model; raises ValueError if there is none, or an adapter."""
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"path must be a local folder, got {str(folder)!r}, which is"
            f" {'a file' if folder.exists() else 'missing'}; download the model first."
        )
    if (folder / _ADAPTER).is_file() and not (folder / CONFIG).is_file():
        raise ValueError(
            f"{str(folder)!r} must be a model, but is a LoRA adapter to one: it holds"
            f" {_ADAPTER} and no {CONFIG}; merge it into its base model first."
        )
    return folder


def read(path: str | os.PathLike) -> Metadata:
    """Reads it into memory: a run may outlive the folder it started from.

    Raises:
      ValueError: if there is no folder; with the file, if there is no config.json, or
        it or generation_config.json is broken.
    """
    folder = local_folder(path)

    def contents(kinds):
        found = sorted(x for kind in kinds for x in folder.glob(kind) if x.is_file())
        return {x.relative_to(folder).as_posix(): x.read_bytes() for x in found}

    generation = folder / GENERATION
    return Metadata(
        folder,
        strict_json.read_file(folder / CONFIG),
        strict_json.read_file(generation) if generation.is_file() else {},
        contents(_KEPT),
        contents(_TOKENIZER),
    )


def write_files(
    folder: pathlib.Path, metadata: Metadata, *, with_tokenizer: bool
) -> None:
    """Writes the kept files, except those that a tokenizer has already written."""
    tokenizer = metadata.tokenizer if with_tokenizer else {}
    for name, content in {**metadata.files, **tokenizer}.items():
        file = folder / name
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)


def stop_tokens(
    tokenizer: "PreTrainedTokenizerBase", metadata: Metadata, vocab_size: int
) -> tuple[int, ...]:
    """Every token that ends a text: the tokenizer's, and those the two configs name.

    Chat models have several: one ends a turn, one a document, and any of them may be
    the tokenizer's.

    Raises:
      ValueError: with the file, for what is no id of the vocabulary.
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
    """The texts that end a completion by generation_config.json.

    Raises:
      ValueError: with the file, for what is no text.
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
    """What a policy hands on that was trained to end at these texts.

    transformers' `generate` needs its `tokenizer` argument for them. Where they are the
    folder's own, nothing changes.

    Args:
      stops: the tokens that end a completion, for a folder without a
        generation_config.json: whose file names none has none.
    """
    if texts == stop_strings(metadata):
        return metadata
    said = metadata.generation if metadata.generation else {"eos_token_id": [*stops]}
    generation = {**said, "stop_strings": [*texts]}
    content = json.dumps(generation, indent=2, sort_keys=True) + "\n"
    files = {**metadata.files, GENERATION: content.encode()}
    return metadata._replace(generation=generation, files=files)


def max_positions(metadata: Metadata) -> int | None:
    """The longest text the model was trained on, tokens; None if it does not say.

    Raises:
      ValueError: with the file, if it is no number of tokens.
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
