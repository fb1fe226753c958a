"""The folder of a run: whose it is, and what it was made with."""

import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from rljax.run import ownership, record

_CONFIG = "config.json"
_PARTIAL = re.compile(r"\.policy\.[0-9a-f]{8}")  # of policy.hugging_face.save


@contextlib.contextmanager
def open_run(
    run_dir: str | os.PathLike, config: Any, *, resume: bool
) -> Iterator[pathlib.Path]:
    """Makes the folder of a run, or checks that it is this run's, and owns it within.

    Enter it before anything is built or compiled. With `resume` a folder that does not
    exist, or in which nothing was saved yet, starts anew.

    Args:
      config: a dataclass or dict of numbers, and what else must not change before a
        resume, such as a fingerprint of the data; written to `config.json`.

    Yields:
      The folder, which no other process may open meanwhile: see `ownership`.

    Raises:
      ValueError: if another process owns the folder, with its id and host; if the
        folder is not empty and `resume` is false; with `resume`, if it is no run's or
        the config differs from the folder's, with the fields that do.
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / ownership.FILE).exists():  # else its owner is named first
        _require_fitting(run_dir, resume)
    config = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    config = json.loads(json.dumps(config, default=str))
    with ownership.owned(run_dir):
        _require_fitting(run_dir, resume)
        for path in run_dir.iterdir():  # what a killed export of a policy left
            if _PARTIAL.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        if (run_dir / _CONFIG).exists():
            _require_same(run_dir, config)
        else:
            text = json.dumps(config, indent=2)
            record.replace_file(run_dir / _CONFIG, text.encode() + b"\n")
        yield run_dir


def _require_fitting(run_dir: pathlib.Path, resume: bool) -> None:
    """A start needs an empty folder; a resume one that a run has made."""
    if not run_dir.exists():
        return
    found = {path.name for path in run_dir.iterdir()} - {ownership.FILE}
    if found and not resume:
        raise ValueError(
            f"the run folder must be new, but {run_dir} is not empty; pass --resume to"
            " go on with that run, or another --run-dir."
        )
    # A run that was killed at once has written nothing else.
    if _CONFIG not in found and found - {f"{_CONFIG}.new"}:
        raise ValueError(
            f"--resume needs the folder of a run, but {run_dir} holds {min(found)} and"
            f" no {_CONFIG}; pass the run's --run-dir."
        )


def _require_same(run_dir: pathlib.Path, config: dict[str, Any]) -> None:
    path = run_dir / _CONFIG
    try:
        old = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} must hold the configuration of the run as a JSON object, but"
            f" {error}; bring it back, or pass another --run-dir."
        ) from error
    differing = [
        f"{name}: {old.get(name, 'nothing')} there, {config.get(name, 'nothing')} now"
        for name in sorted({*old, *config})
        if old.get(name) != config.get(name)
    ]
    if differing:
        raise ValueError(
            f"--resume needs the configuration {run_dir} was started with, but"
            f" {'; '.join(differing)}. Pass the same values, or another --run-dir."
        )


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
