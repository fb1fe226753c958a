"""Reads and writes decoders as Hugging Face folders, without torch or transformers."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rljax import digest
from rljax.data import token_ids
from rljax.model.config import DecoderConfig
from rljax.model.hugging_face import config as config_json
from rljax.model.hugging_face import family, weights
from rljax.model.hugging_face import metadata as folder_metadata
from rljax.model.hugging_face.family import Family
from rljax.model.hugging_face.metadata import CONFIG, Metadata

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load(
    path: str | os.PathLike, *, param_dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[DecoderConfig, dict[str, Any]]:
    """Reads the decoder in a local folder: `config, params = load(path)`.

    Of a multimodal model (`text_part.MULTIMODAL`) it reads the language model.
    Activations are float32; `dataclasses.replace(config, dtype=...)` changes that.

    Args:
      path: a folder with config.json, of a family in `family.FAMILIES`, and
        model.safetensors, or shards and their index.
      param_dtype: of the parameters, whatever the files hold.

    Returns:
      The configuration, and the parameters that `decoder_policy(config)` takes.

    Raises:
      ValueError: naming the file and the key or tensor, if a file is missing or
        broken, if the decoder does not compute what the configuration asks for, or if
        tensors are missing, unexpected, quantised or of a wrong shape.
    """
    folder, config, kind = _read(path)
    dtype = jnp.dtype(param_dtype)
    with contextlib.ExitStack() as stack:
        return config, weights.read(folder, config, kind, dtype, stack)


def check(path: str | os.PathLike) -> set[str]:
    """The dtypes of the tensors; reads only their names and shapes.

    Raises:
      ValueError: as `load` does.
    """
    with contextlib.ExitStack() as stack:
        _, stored = weights.checked(*_read(path), stack)
        return weights.dtypes(stored)


def _read(path: str | os.PathLike) -> tuple[pathlib.Path, DecoderConfig, Family]:
    folder = folder_metadata.local_folder(path)
    entries = folder_metadata.config_entries(folder)
    config = config_json.read(entries, folder / CONFIG)
    return folder, config, family.named(entries["model_type"])


def save(
    path: str | os.PathLike,
    config: DecoderConfig,
    params: dict[str, Any],
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
    metadata: Metadata | None = None,
    shard_bytes: int = 10**9,
) -> None:
    """Writes a folder that `load` and transformers read, with the same logits.

    The folder appears only when it is complete: the files are written to a hidden
    folder beside `path`, which is renamed at the end.

    Args:
      path: the folder to make; must not exist, or be empty.
      config: of the decoder.
      params: its parameters, all of one dtype (float32, bfloat16 or float16), which
        the files keep. This process must be able to address them.
      tokenizer: is saved too; config.json names its begin, end and padding tokens.
      model_type: one of `family.FAMILIES`; None: that of `metadata`, or else the first
        family that can express `config`.
      extra: further keys of config.json, such as {"max_position_embeddings": 32768}.
        They override the tokenizer's and must not contradict `config`.
      metadata: `metadata.read` of the folder that the policy comes from. All keys of
        its config.json are kept, unless `extra` overrides them, and so are its
        generation_config.json, licence and chat templates. Its tokenizer files are
        kept unless `tokenizer` is given.
      shard_bytes: maximum size of a file of weights, bytes; also the most that is
        copied to the host at a time.

    Raises:
      ValueError: before anything is written, if `path` is taken, `params` are not
        those of `config` or not finite, the tokenizer has more tokens than the model,
        the model type cannot express `config`, or `extra` contradicts it.
    """
    target = pathlib.Path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(
            f"path must not exist yet or be an empty folder, got {str(target)!r};"
            " choose another, or remove it first."
        )
    weights.check_params(config, params)
    bad = digest.not_finite(params)
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"params must be finite, but {bad[0]}{more} hold NaN or infinity; save"
            " the params of the last good checkpoint."
        )
    dtype = jax.tree.leaves(params)[0].dtype.name
    dtypes = dict.fromkeys(("dtype", "torch_dtype"), dtype)
    extra = {**({} if extra is None else extra), **dtypes}
    entries = config_entries(config, tokenizer, metadata, model_type, extra)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    partial.mkdir(parents=True)
    try:
        kind = family.named(entries["model_type"])
        weights.write(partial, config, kind, params, shard_bytes)
        write_beside(partial, entries, tokenizer, metadata)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_beside(
    path: pathlib.Path,
    entries: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    metadata: Metadata | None = None,
) -> None:
    """Writes all files of a folder except the weights; `entries` are config.json."""
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
    if metadata is not None:
        folder_metadata.write_files(path, metadata, with_tokenizer=tokenizer is None)
    weights.write_json(path / CONFIG, entries)


def config_entries(
    config: DecoderConfig,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    metadata: Metadata | None = None,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of config.json that `save` would write.

    Call it before a run to learn then, and not after training, what `save` refuses.

    Raises:
      ValueError: as `save` does.
    """
    said = {} if metadata is None else dict(metadata.config)
    # Without explicit nulls, transformers takes token 2 as the end token of any Llama.
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if tokenizer is not None:
        token_ids.check_tokenizer(tokenizer, config.vocab_size)
        ids = {key: getattr(tokenizer, key) for key in ids}
    elif metadata is not None:  # its config.json says which ids are given
        ids = {}
    model_type = said.get("model_type") if model_type is None else model_type
    extra = {**ids, **said, **({} if extra is None else extra)}
    return config_json.entries(config, model_type=model_type, extra=extra)
