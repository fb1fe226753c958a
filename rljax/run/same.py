"""Checks that all processes of a run have the same configuration, code and settings.

The check comes before anything is written. Processes that run different programs would
wait for each other forever, or silently train different things.
"""

import hashlib
import importlib.metadata
import pathlib
import platform
import sys
from collections.abc import Mapping
from typing import Any

import jax

from rljax import processes

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
)


def require_same_program(config: Mapping[str, Any]) -> None:
    """Raises if a process has another configuration or other code than the leader.

    Args:
      config: name -> value of the run's configuration; JSON-able.

    Raises:
      ValueError: naming the first process that differs, and the entries that do.
    """
    if processes.count() == 1:
        return
    processes.require_same(
        "the configuration", config, "Start all processes with the same command."
    )
    processes.require_same(
        "the code", code(), "Install the same versions on all hosts, and start again."
    )


def code() -> dict[str, str]:
    """Name -> versions of packages, settings of JAX, and digests of source files.

    The files are those of rljax and of the program's own package or script.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        found[package] = importlib.metadata.version(package)
    for setting in _SETTINGS:
        found[setting] = str(jax.config.values[setting])
    for root, path in _sources():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(root))] = digest[:12]
    return found


def _sources() -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(root, file) of the source files of rljax and of the program."""
    folders = [pathlib.Path(__file__).parents[1]]
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)  # a notebook has none
    files = []
    if script is not None:
        path = pathlib.Path(script).resolve()
        files.append((path.parent, path))
        if main.__spec__ is not None and main.__spec__.parent:  # python -m package.name
            folders.append(path.parent)
    for folder in folders:
        files += [(folder.parent, path) for path in sorted(folder.rglob("*.py"))]
    return files
