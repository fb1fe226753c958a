"""A decoder's parameters as named tensors in safetensors files.

Files are checked completely before the first array is made. Which tensors there must
be, and their shapes, `tensors` says.
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
from rljax.model.hugging_face import shards, tensors
from rljax.model.hugging_face.family import Family
from rljax.model.hugging_face.metadata import CONFIG
from rljax.model.hugging_face.tensors import EMBED, HEAD, Part

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Old checkpoints carry the rotary frequencies, which follow from rope_theta.
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
    """The parameters that `decoder_policy(config)` takes, from the folder's files.

    Each lies where the mesh in use has it: `shards` says what that takes of the host.

    Args:
      stack: closes the files when it is left.

    Raises:
      ValueError: naming file and tensor; before the first array is made.
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
    """The parts of each tensor, and the open files that hold them, by tensor.

    Raises:
      ValueError: as `read` does; only names and shapes of the tensors are read.
    """
    parts = tensors.parts(config, family)
    source, stored = _open(folder, stack)
    _check_tensors(source, stored, config, parts)
    return parts, stored


def dtypes(stored: dict[str, Any]) -> set[str]:
    """Of the tensors in checked files, by name."""
    slices = (file.get_slice(name) for name, file in stored.items())
    return {_STORED_DTYPES[x.get_dtype()] for x in slices}


def _open(folder: pathlib.Path, stack: contextlib.ExitStack):
    """The file that lists the folder's tensors, and for each the open file it is in."""
    single, index = folder / WEIGHTS, folder / INDEX
    if single.is_file():
        file = _open_file(single, stack)
        return single, dict.fromkeys(file.keys(), file)
    if not index.is_file():
        names = sorted(entry.name for entry in folder.iterdir())
        pickled = any(name.endswith((".bin", ".pt", ".pth")) for name in names)
        why = ", pickles run code when they are read" if pickled else ""
        raise ValueError(
            f"{str(folder)!r} must hold {WEIGHTS} or {INDEX}, found {names}{why};"
            " convert other formats with save_pretrained of transformers."
        )
    shard_of = strict_json.read_file(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise ValueError(f"{index}: must hold an object weight_map, got {shard_of!r}.")
    shard_of = {name: str(shard) for name, shard in shard_of.items()}
    files = {}
    for shard in sorted(set(shard_of.values())):
        # A path that leaves the folder is no shard of it.
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
            f" listed or only held: {_some(differ)}; index and shards are of different"
            " models: download all of them again."
        )
    return index, {name: files[shard] for name, shard in held}


def _is_spare(name: str) -> bool:
    """Whether an index may list a tensor that no file holds.

    Some tools list the head though embeddings are tied. If the decoder needs it, the
    check of tensors finds it missing.
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
    head, embed = HEAD, EMBED
    if missing := sorted(expected.keys() - stored.keys()):
        hint = f"; without {head}, tie_word_embeddings must be true"
        raise ValueError(
            f"{source}: needs tensors it does not have: {_some(missing)}"
            f"{hint if head in missing else ''}."
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
            f" {_some(quantised.items())}; load weights that are not quantised."
        )
    wrong = [
        f"{name} is {got[name].get_shape()}, expected {list(shape)}"
        for name, shape in expected.items()
        if tuple(got[name].get_shape()) != shape
    ]
    if wrong:
        raise ValueError(f"{source}: shapes contradict {CONFIG}: {_some(wrong)}.")
    unexpected = {x for x in stored.keys() - expected.keys() if not _REDUNDANT.match(x)}
    if config.tie_embeddings and head in unexpected:
        unexpected.remove(head)
        if not _equal(stored, head, embed):
            raise ValueError(
                f"{source}: {head} must equal {embed} because tie_word_embeddings is"
                f" true, but they differ; set it to false in {CONFIG}."
            )
    if unexpected:
        raise ValueError(
            f"{source}: holds tensors that the decoder has no place for:"
            f" {_some(sorted(unexpected))}; this is another model than {CONFIG} says."
        )


def _equal(stored, first: str, second: str) -> bool:
    """Whether two tensors of the files are, some rows of them in memory at a time."""
    slices = [stored[name].get_slice(name) for name in (first, second)]
    count = slices[0].get_shape()[0]
    rows = [slice(i, min(i + 4096, count)) for i in range(0, count, 4096)]
    return all(np.array_equal(*(x[some] for x in slices)) for some in rows)


def check_params(config: DecoderConfig, params) -> None:
    """Raises ValueError unless they are the decoder's, of one dtype that is saved."""
    flat = jax.tree_util.tree_leaves_with_path(params)
    shapes = jax.tree_util.tree_leaves_with_path(tensors.shapes(config))

    def describe(leaves):
        return {f"{jax.tree_util.keystr(p)} {list(x.shape)}" for p, x in leaves}

    if differ := sorted(describe(flat) ^ describe(shapes)):
        raise ValueError(
            "params must be the parameters of config's decoder; these are only in one"
            f" of them: {_some(differ)}."
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
    """Writes checked parameters; a shard of them at a time is copied to the host."""
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
    """The tensor of some parts, in the order in which its memory must lie."""
    arrays = [np.asarray(flat[part.path][part.index]) for part in stacked]
    arrays = [x.T if p.transposed else x for p, x in zip(stacked, arrays, strict=True)]
    # safetensors writes the memory as it lies, so a view would be out of order.
    return np.ascontiguousarray(
        arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    )


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a JSON file for people to read."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")


def _some(items) -> str:
    """The first few of many, for a message."""
    shown = [x if isinstance(x, str) else " in ".join(x) for x in items]
    rest = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
    return ", ".join(shown[:4]) + rest
