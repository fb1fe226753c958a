"""The folder of a run: creation, the check that a resume fits it, and provenance."""

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
from collections.abc import Collection, Iterator
from typing import Any

import jax

from rljax import processes, strict_json
from rljax.run import files, ownership

_CONFIG = "config.json"
# Hidden folders that `hugging_face.save` writes and renames.
_PARTIAL = re.compile(r"\.(\.?(policy|policy-best)(\.new)?|model)\.[0-9a-f]{8}")


@contextlib.contextmanager
def open_run(
    run_dir: str | os.PathLike,
    config: Any,
    *,
    resume: bool,
    may_change: Collection[str] = (),
) -> Iterator[pathlib.Path]:
    """A context that owns the folder of a run: a new one, or that of a run to resume.

    Enter it before anything is built or compiled, so that errors come early. If there
    are several processes, the leader makes and owns the folder, and the others wait.

    Args:
      run_dir: a folder on a file system.
      config: a dataclass or dict with everything that must not change before a resume,
        such as numbers and a fingerprint of the data; written to `config.json`.
      resume: whether to continue the run in the folder. If the folder does not exist,
        or nothing was saved in it, a new run starts.
      may_change: fields that a resume may change, because no number of the run depends
        on them; `config.json` then gets the new values.

    Yields:
      The folder. No other process may open it in the meantime: see `ownership`.

    Raises:
      ValueError: if another process owns the folder; if the folder is not empty and
        `resume` is false; with `resume`, if the folder is not a run's, or the config
        differs in fields that must not change. The message names owner or fields.
    """
    run_dir = ownership.local(run_dir)
    opened = _opened(run_dir, config, resume, may_change)
    with processes.led("the run folder", opened):
        yield run_dir


@contextlib.contextmanager
def _opened(
    run_dir: pathlib.Path, config: Any, resume: bool, may_change: Collection[str]
) -> Iterator[None]:
    # If the folder has an owner, the error must name the owner, so lock it first.
    if not (run_dir / ownership.FILE).exists():
        _require_fitting(run_dir, resume)
    config = plain(config)
    with ownership.owned(run_dir):
        _require_fitting(run_dir, resume)
        for path in run_dir.iterdir():  # remains of a killed export of a policy
            if _PARTIAL.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)
        if (run_dir / _CONFIG).exists():
            _require_same(run_dir, config, may_change)
        text = json.dumps(config, indent=2, allow_nan=False).encode() + b"\n"
        path = run_dir / _CONFIG
        if not path.exists() or path.read_bytes() != text:
            files.replace_file(path, text)
        yield


def read_config(run_dir: pathlib.Path) -> dict[str, Any]:
    """The content of `config.json`; {} if there is no such file.

    Raises:
      ValueError: naming the file, if it is not a JSON object.
    """
    path = run_dir / _CONFIG
    if not path.exists():
        return {}
    try:
        config = strict_json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"it holds a {type(config).__name__}")
    except ValueError as error:
        raise ValueError(
            f"{path} must hold the configuration of the run as a JSON object, but"
            f" {error}; restore the file, or choose another run folder."
        ) from error
    return config


def plain(config: Any) -> dict[str, Any]:
    """The configuration after a round trip through JSON; infinities become text."""
    fields = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config
    return json.loads(json.dumps(fields, default=str), parse_constant=str)


def _require_fitting(run_dir: pathlib.Path, resume: bool) -> None:
    """Raises unless the folder is empty, or, for a resume, is the folder of a run."""
    if not run_dir.exists():
        return
    found = {path.name for path in run_dir.iterdir()} - {ownership.FILE}
    if found and not resume:
        raise ValueError(
            f"the run folder must be new, but {run_dir} is not empty; resume that run"
            " (resume=True), or choose another run folder."
        )
    # A run that was killed at its very start has written at most this file.
    if _CONFIG not in found and found - {f"{_CONFIG}.new"}:
        raise ValueError(
            f"a resume needs the folder of a run, but {run_dir} holds {min(found)} and"
            f" no {_CONFIG}; pass the folder of the run."
        )


def _require_same(
    run_dir: pathlib.Path, config: dict[str, Any], may_change: Collection[str]
) -> None:
    old = read_config(run_dir)
    differing = {
        name: f"{name}: {old.get(name, 'nothing')} before,"
        f" {config.get(name, 'nothing')} now"
        for name in sorted({*old, *config})
        if old.get(name) != config.get(name)
    }
    wrong = [text for name, text in differing.items() if name not in may_change]
    if wrong:
        free = f" ({', '.join(sorted(may_change))} may change)" if may_change else ""
        raise ValueError(
            f"a resume needs the configuration {run_dir} was started with, but"
            f" {'; '.join(wrong)}. Pass the same values{free}, or choose another run"
            " folder."
        )
    for text in differing.values():
        print(f"{run_dir}: resumes with another {text}")


def provenance() -> dict[str, Any]:
    """The command, versions, devices and time, for readers of the run's records."""
    packages = ("rljax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    kinds = collections.Counter(device.device_kind for device in jax.devices())
    names = [processes.name(i) for i in range(processes.count())]
    together = {"processes": names} if len(names) > 1 else {}
    return {
        **together,
        "command": shlex.join(
            [pathlib.Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
        ),
        "versions": versions,
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
