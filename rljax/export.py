"""Exports a checkpoint of a run as a Hugging Face folder.

    python -m rljax.export RUN_FOLDER OUT            # the newest checkpoint
    python -m rljax.export RUN_FOLDER OUT --step 40
    python -m rljax.export RUN_FOLDER/checkpoints/00000040 OUT --dtype float32

All it needs is in the run folder: the checkpoint has the arrays, and `model`, which a
run writes when it begins, everything else of the policy (configuration, tokenizer,
generation defaults, licence). LoRA adapters are merged.
"""

import os
import pathlib
import re
import sys
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from etils import epath

from rljax import digest, strict_json
from rljax.evaluate.kept import LEAVES, MODEL
from rljax.model.hugging_face import config as config_json
from rljax.model.hugging_face import folder, metadata
from rljax.policy import lora
from rljax.run import checkpoint_folder, checkpoint_leaves


def export(
    path: str | os.PathLike,
    out: str | os.PathLike,
    *,
    step: int | None = None,
    dtype: str | None = None,
) -> pathlib.Path:
    """Writes the policy of a checkpoint as a Hugging Face folder.

    Args:
      path: a run folder, or one of its checkpoints.
      out: the folder to make; must not exist, or be empty.
      step: the checkpoint's training step, if `path` is a run folder; None is the
        newest checkpoint.
      dtype: of the parameters; None is the dtype in which the run saves policies.

    Returns:
      `out`.

    Raises:
      ValueError: if something is missing or does not fit.
    """
    found = _checkpoint(pathlib.Path(path), step)
    origin = found.parent.parent / MODEL
    if not (origin / LEAVES).is_file():
        raise ValueError(
            f"{found} must lie in a run folder with {MODEL}/{LEAVES}, which a run"
            f" writes when it begins, got none at {origin}; export from the original"
            " run folder."
        )
    facts = strict_json.read_file(origin / LEAVES)
    if (sources := facts["params"]) is None:
        raise ValueError(
            f"the policy must be a part of the parameters in {found}, got one that the"
            " run computes from them; use the policy folders of the run."
        )
    beside = metadata.read(origin)
    config = config_json.read(beside.config, origin / metadata.CONFIG)
    dtype = beside.config["dtype"] if dtype is None else dtype
    params = _read(found, sources)
    if "lora" in facts:
        params = lora.merged(params, lora.Lora(**facts["lora"]))
    params = jax.tree.map(lambda x: np.asarray(x).astype(jnp.dtype(dtype)), params)
    folder.save(out, config, params, metadata=beside)
    return pathlib.Path(out)


def _checkpoint(path: pathlib.Path, step: int | None) -> pathlib.Path:
    """The folder of the chosen checkpoint."""
    directory = path / "checkpoints"
    wanted = None if step is None else f"{step:08d}"
    if not directory.is_dir():
        if step is not None:
            raise ValueError(
                f"step must go with a run folder, got {path}, which has no"
                " checkpoints folder; leave step out, or name the run folder."
            )
        directory, wanted = path.parent, path.name
    found = [
        one
        for one in checkpoint_folder.ours(epath.Path(directory))
        if checkpoint_folder.saved(one) is not None
    ]
    for one in found:
        if wanted in (None, one.name):
            return pathlib.Path(one).absolute()
    steps = ", ".join(str(int(one.name)) for one in reversed(found)) or "none"
    raise ValueError(
        f"{path} must be a run folder with the checkpoint asked for, or a checkpoint,"
        f" got {f'no {wanted}' if wanted else 'none'}; there are those of steps:"
        f" {steps}."
    )


def _read(path: pathlib.Path, sources: dict[str, str]) -> dict[str, Any]:
    """Reads only the decoder's parameters from a checkpoint."""
    arrays = checkpoint_leaves.read(path, set(sources.values()))
    tree: dict[str, Any] = {}
    for name, source in sources.items():
        *modules, leaf = re.findall(r"\['([^']*)'\]", name)
        inside = tree
        for module in modules:
            inside = inside.setdefault(module, {})
        inside[leaf] = arrays[source]
    if bad := digest.not_finite(tree):
        raise ValueError(f"{path} must hold finite parameters, but {bad[0]} does not.")
    return tree


def main(
    checkpoint: Annotated[pathlib.Path, tyro.conf.Positional],
    out: Annotated[pathlib.Path, tyro.conf.Positional],
    step: int | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
) -> None:
    """Writes a checkpoint of a run as a Hugging Face folder.

    Args:
      checkpoint: a run folder, or one of its checkpoints.
      out: folder to make.
      step: training step of the checkpoint; by default the newest of the run folder.
      dtype: of the parameters; by default that of the run's own policy folders.
    """
    try:
        made = export(checkpoint, out, step=step, dtype=dtype)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"policy, a Hugging Face folder: {made}")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # hardly anything is computed
    tyro.cli(main, prog="python -m rljax.export")
