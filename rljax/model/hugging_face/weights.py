"""Reads and writes a decoder's parameters as safetensors files.

The names and shapes of all tensors are checked before the first array is made;
`tensors` says what they must be.
"""

import contextlib
import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from rljax import mesh, strict_json
from rljax.model.config import DecoderConfig
from rljax.model.hugging_face import shards, tensors, text_part
from rljax.model.hugging_face.family import Family
from rljax.model.hugging_face.metadata import CONFIG
from rljax.model.hugging_face.tensors import EMBED, HEAD, Part

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Old checkpoints hold the rotary frequencies too, which follow from rope_theta.
_REDUNDANT = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")

# NumPy reads and writes bfloat16 because jax imports ml_dtypes, which registers it.
_STORED_DTYPES = {
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F64": "float64",
}
_SAVED_DTYPES = ("float32", "bfloat16", "float16")


def read(
    folder: pathlib.Path,
    config: DecoderConfig,
    family: Family,
    dtype: np.dtype,
    stack: contextlib.ExitStack,
) -> dict[str, Any]:
    """Reads the parameters that `decoder_policy(config)` takes.

    Each parameter is placed as the mesh in use stores it; `shards` says how.

    Args:
      folder, config, family: of the model.
      dtype: of the parameters, whatever the files hold.
      stack: closes the files on exit.

    Returns:
      The parameter tree.

    Raises:
      ValueError: naming file and tensor, if a file is broken or a tensor is missing,
        unexpected, quantised or of a wrong shape; before the first array is made.
    """
    parts, stored = checked(folder, config, family, stack)
    shapes = tensors.shapes(config)
    sizes = tensors.by_path(shapes)
    where = dict(zip(sizes, mesh.stored(shapes), strict=True))
    params = shards.read(sizes, where, parts, stored, dtype)
    treedef = jax.tree.structure(shapes)
    return jax.tree.unflatten(treedef, [params[path] for path in sizes])


def checked(
    folder: pathlib.Path,
    config: DecoderConfig,
    family: Family,
    stack: contextlib.ExitStack,
):
    """Checks names and shapes of all tensors, without reading the weights.

    Returns:
      Tensor name -> its parts, and tensor name -> the open file that holds it.

    Raises:
      ValueError: as `read` does.
    """
    parts = tensors.parts(config, family)
    source, stored = _open(folder, stack)
    stored = text_part.tensors(stored)
    _check_tensors(source, stored, config, parts)
    return parts, stored


def dtypes(stored: dict[str, Any]) -> set[str]:
    """The dtypes of the tensors in checked files."""
    slices = (file.get_slice(name) for name, file in stored.items())
    return {_STORED_DTYPES[x.get_dtype()] for x in slices}


def _open(folder: pathlib.Path, stack: contextlib.ExitStack):
    """The file that lists the folder's tensors, and tensor name -> its open file."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        file = _open_file(single, stack)
        return single, dict.fromkeys(file.keys(), file)
    if not index.is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        why = ", and reading pickles may run code" if pickled else ""
        raise ValueError(
            f"{str(folder)!r} must hold {WEIGHTS} or {INDEX}, found {names}{why};"
            " convert other formats with save_pretrained of transformers."
        )
    shard_of = strict_json.read_file(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(
            f"{index}: must hold an object weight_map, got {shard_of!r}; download it"
            " again."
        )
    shard_of = {name: str(shard) for name, shard in shard_of.items()}
    files = {}
    for shard in sorted(set(shard_of.values())):
        # A path out of the folder is not accepted as a shard.
        if shard == pathlib.Path(shard).name and (folder / shard).is_file():
            files[shard] = _open_file(folder / shard, stack)
        elif not all(_is_spare(name) for name, s in shard_of.items() if s == shard):
            raise ValueError(f"{index}: shard {shard!r} is missing; download it again.")
    listed = {x for x in shard_of.items() if x[1] in files}
    held = {(name, s) for s, file in files.items() for name in sorted(file.keys())}
    only_listed = {x for x in listed - held if not _is_spare(x[0])}
    only_held = {x for x in held - listed if not _REDUNDANT.match(x[0])}
    if differ := sorted(only_listed | only_held):
        raise ValueError(
            f"{index}: must list the tensors that its shards hold, but these are only"
            f" listed or only held: {_some(differ)}; index and shards belong to"
            " different models: download all of them again."
        )
    return index, {name: files[shard] for name, shard in held}


def _is_spare(name: str) -> bool:
    """Whether an index may list this tensor although no file holds it.

    Some tools list the output head although embeddings are tied. If the decoder needs
    it, `_check_tensors` raises.
    """
    return name == HEAD or bool(_REDUNDANT.match(name))


def _open_file(file: pathlib.Path, stack: contextlib.ExitStack):
    try:
        return stack.enter_context(safetensors.safe_open(file, framework="np"))
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file}: broken: {error}; download it again.") from error


def _check_tensors(
    source: pathlib.Path, stored, config: DecoderConfig, parts: dict[str, list[Part]]
):
    """Raises unless the files hold what the decoder needs, and nothing else."""
    expected = {name: tensors.shape_of(stacked) for name, stacked in parts.items()}
    if missing := sorted(expected.keys() - stored.keys()):
        hint = f"; without {HEAD}, tie_word_embeddings must be true"
        raise ValueError(
            f"{source}: needs tensors it does not have: {_some(missing)}"
            f"{hint if HEAD in missing else ''}."
        )
    got = {name: stored[name].get_slice(name) for name in stored}
    quantised = {
        name: x.get_dtype()
        for name, x in got.items()
        if x.get_dtype() not in _STORED_DTYPES
    }
    if quantised:
        raise ValueError(
            f"{source}: tensors must be of {', '.join(_STORED_DTYPES)}, got"
            f" {_some(quantised.items())}; load the model's unquantised weights."
        )
    wrong = [
        f"{name} is {got[name].get_shape()}, expected {list(shape)}"
        for name, shape in expected.items()
        if tuple(got[name].get_shape()) != shape
    ]
    if wrong:
        raise ValueError(f"{source}: shapes contradict {CONFIG}: {_some(wrong)}.")
    unexpected = {x for x in stored.keys() - expected.keys() if not _REDUNDANT.match(x)}
    if config.tie_embeddings and HEAD in unexpected:
        unexpected.remove(HEAD)
        if not _equal(stored, HEAD, EMBED):
            raise ValueError(
                f"{source}: {HEAD} must equal {EMBED} because tie_word_embeddings is"
                f" true, but they differ; set it to false in {CONFIG}."
            )
    if unexpected:
        raise ValueError(
            f"{source}: holds tensors that the decoder does not use:"
            f" {_some(sorted(unexpected))}; this is another model than {CONFIG} says."
        )


def _equal(stored, first: str, second: str) -> bool:
    """Whether two tensors are equal; compares 4096 rows at a time to save memory."""
    slices = [stored[name].get_slice(name) for name in (first, second)]
    count = slices[0].get_shape()[0]
    rows = [slice(i, min(i + 4096, count)) for i in range(0, count, 4096)]
    return all(np.array_equal(*(x[some] for x in slices)) for some in rows)


def check_params(config: DecoderConfig, params) -> None:
    """Raises ValueError unless `params` fit `config` and share one supported dtype."""
    flat = jax.tree_util.tree_leaves_with_path(params)
    shapes = jax.tree_util.tree_leaves_with_path(tensors.shapes(config))

    def describe(leaves):
        return {f"{jax.tree_util.keystr(p)} {list(x.shape)}" for p, x in leaves}

    if differ := sorted(describe(flat) ^ describe(shapes)):
        raise ValueError(
            "params must be the parameters of config's decoder; these are only in one"
            f" of them: {_some(differ)}; pass the config they were made with."
        )
    dtypes = {x.dtype.name for _, x in flat}
    if len(dtypes) > 1 or not dtypes <= set(_SAVED_DTYPES):
        raise ValueError(
            f"params must all be of one dtype of {', '.join(_SAVED_DTYPES)}, got"
            f" {', '.join(sorted(dtypes))}; cast them with jax.tree.map."
        )


def write(
    folder: pathlib.Path,
    config: DecoderConfig,
    family: Family,
    params,
    shard_bytes: int,
) -> None:
    """Writes parameters that `check_params` accepts, copying one shard at a time.

    Args:
      folder: an existing folder.
      config, family, params: of the model.
      shard_bytes: maximum size of a file, bytes.
    """
    parts, flat = tensors.parts(config, family), tensors.by_path(params)
    width = jax.tree.leaves(params)[0].dtype.itemsize
    num_bytes = {name: width * tensors.size_of(x) for name, x in parts.items()}
    shards, size = [[]], 0
    for name, more in num_bytes.items():
        if shards[-1] and size + more > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    shard_of = {}
    for i, names in enumerate(shards, 1):
        file = WEIGHTS
        if len(shards) > 1:
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
        arrays = {name: _joined(parts[name], flat) for name in names}
        # Versions of transformers refuse files that do not name a framework.
        try:
            safetensors.numpy.save_file(
                arrays, folder / file, metadata={"format": "pt"}
            )
        except safetensors.SafetensorError as error:  # a full disk
            raise OSError(f"{folder / file} could not be written: {error}") from error
        shard_of |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(num_bytes.values())
        index = {"metadata": {"total_size": total}, "weight_map": shard_of}
        write_json(folder / INDEX, index)


def _joined(stacked: list[Part], flat: dict[str, Any]) -> np.ndarray:
    """The tensor of some parts, contiguous in memory."""
    arrays = [np.asarray(flat[part.path][part.index]) for part in stacked]
    arrays = [x.T if p.transposed else x for p, x in zip(stacked, arrays, strict=True)]
    # safetensors writes raw memory, so a transposed view would be out of order.
    return np.ascontiguousarray(
        arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    )


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes an indented JSON file with sorted keys."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _some(items) -> str:
    """The first 4 items and the number of the others, for a message."""
    shown = [x if isinstance(x, str) else " in ".join(x) for x in items]
    rest = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(shown[:4]) + rest
