"""The folder of a run: whose it is, and what it was made with."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
import time
from typing import Any

import jax

from rljax import metrics


def open_run(run_dir: str | os.PathLike, config: Any, *, resume: bool) -> pathlib.Path:
    """Makes the folder of a run, or checks that it is this run's.

    Call it before anything is built or compiled. With `resume` a folder that does not
    exist, or in which nothing was saved yet, starts anew.

    Args:
      config: a dataclass or dict of numbers; written to `config.json`.

    Raises:
      ValueError: if the folder is in use and `resume` is false; with `resume`, if the
        config differs from the folder's, with the fields that do.
    """
    run_dir = pathlib.Path(run_dir)
    config = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    config = json.loads(json.dumps(config, default=str))
    path = run_dir / "config.json"
    if not resume and run_dir.exists() and any(run_dir.iterdir()):
        raise ValueError(
            f"the run folder must be new, but {run_dir} is not empty; pass --resume to"
            " go on with that run, or another --run-dir."
        )
    if path.exists():
        old = json.loads(path.read_text())
        differing = [
            f"{name}: {old.get(name, 'nothing')} there, {config.get(name, 'nothing')}"
            " now"
            for name in sorted({*old, *config})
            if old.get(name) != config.get(name)
        ]
        if differing:
            raise ValueError(
                f"--resume needs the configuration {run_dir} was started with, but"
                f" {'; '.join(differing)}. Pass the same values, or another --run-dir."
            )
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        metrics.replace_file(path, json.dumps(config, indent=2).encode() + b"\n")
    return run_dir


def provenance() -> dict[str, Any]:
    """What a reader of the run will want to know of the program and the machine."""
    packages = ("rljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    return {
        "command": shlex.join(
            [pathlib.Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
        ),
        "versions": versions,
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
