"""Finds a run's checkpoints in a directory, and tells which ones are complete.

A folder is a checkpoint of the run if its name equals the step in its metadata.
Everything else, such as notes or a renamed copy, belongs to the user and is never
changed.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

from etils import epath

from rljax import processes

_METADATA, _COMPLETE = "_CHECKPOINT_METADATA", "commit_success.txt"  # orbax's names
_WRITTEN = frozenset({"state", _METADATA, _COMPLETE})
_NAME = re.compile(r"\d{8,}")
_UNFINISHED = re.compile(r"\d{8,}\.orbax-checkpoint-tmp")


class Found(NamedTuple):
    """A complete checkpoint: its folder, and the `info` saved with the state."""

    path: epath.Path
    info: dict[str, Any]


class Names:
    """Tells orbax the names of this run's checkpoints; orbax removes no others."""

    def build_name(self, step: int) -> str:
        return f"{step:08d}"

    def find_all(self, base_path: epath.PathLike) -> Iterator[Any]:
        return map(_orbax_metadata, ours(epath.Path(base_path)))

    def find_step(self, base_path: epath.PathLike, step: int) -> Any:
        path = epath.Path(base_path) / self.build_name(step)
        if not is_ours(path):
            raise ValueError(f"{path} is not a checkpoint of this run.")
        return _orbax_metadata(path)


def ours(directory: epath.Path) -> list[epath.Path]:
    """This run's checkpoints, newest first."""
    return [path for path in _named(directory) if is_ours(path)]


def others(directory: epath.Path) -> list[epath.Path]:
    """Checkpoints of another run, or of another version of the format."""
    return [
        path
        for path in _named(directory)
        if (path / _METADATA).exists() and not is_ours(path)
    ]


def is_ours(path: epath.Path) -> bool:
    """Whether a folder that is named after a step is a checkpoint of this run.

    A folder with only some parts of a checkpoint counts too: an interrupted removal or
    a damaged disk leaves that.
    """
    beside = _sound(path)
    if beside is not None:
        return beside["step"] == int(path.name)
    names = {inside.name for inside in path.iterdir()} if path.is_dir() else set()
    return bool(names) and names <= _WRITTEN


def saved(path: epath.Path) -> dict[str, Any] | None:
    """The metadata that was saved with the state; None if the checkpoint is incomplete
    or its metadata has changed."""
    return _sound(path) if _is_complete(path) else None


def sealed(beside: dict[str, Any]) -> dict[str, Any]:
    """The entries, and one more: `seal`, a digest of them."""
    text = json.dumps(beside, sort_keys=True)
    return beside | {"seal": hashlib.sha256(text.encode()).hexdigest()}


def put_aside(path: epath.Path) -> epath.Path:
    """Renames a checkpoint to the first free name of `.corrupt`, `.corrupt2`, ..."""
    number, aside = 1, path.with_name(f"{path.name}.corrupt")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.corrupt{number}")
    path.rename(aside)
    return aside


def remove_unfinished(directory: epath.Path) -> None:
    """Removes the remains of interrupted saves and removals; none may be running."""
    found = directory.iterdir() if directory.is_dir() else ()
    unfinished = [path for path in found if _UNFINISHED.fullmatch(path.name)]
    incomplete = [path for path in ours(directory) if not _is_complete(path)]
    for path in unfinished + incomplete:
        path.rmtree(missing_ok=True)


def require_shared(directory: epath.Path) -> None:
    """Checks that all processes see the same folder.

    Raises:
      ValueError: naming the first process that does not see the leader's files.
    """
    if processes.count() == 1:
        return

    def mark() -> str:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f".shared-{secrets.token_hex(8)}"
        path.write_text("")
        return path.name

    path = directory / processes.from_leader("a shared folder", mark)
    seen = processes.gathered("who sees the folder", path.exists())
    if processes.leads():
        path.unlink()
    if not all(seen):
        raise ValueError(
            "all processes must see the same folder of checkpoints, but"
            f" {processes.name(seen.index(False))} sees another {directory}; put it on"
            " a file system that all hosts mount, or in a bucket (checkpoint_dir)."
        )


def require_readable(path: epath.Path) -> None:
    """Reads one byte of every file in a folder.

    Raises:
      OSError: if a file exists but cannot be read now.
    """
    for root, _, files in path.walk():
        for name in files:
            with (root / name).open("rb") as data:
                data.read(1)


def _is_complete(path: epath.Path) -> bool:
    """Whether a save has finished and no removal has started.

    On a file system, orbax writes the metadata first and renames the folder last. In a
    bucket, where folders cannot be renamed, it writes a marker file last.
    """
    last = _COMPLETE if "://" in str(path) else _METADATA
    return (path / last).exists()


def _named(directory: epath.Path) -> list[epath.Path]:
    """Folders that are named after a step, newest first."""
    found = directory.iterdir() if directory.is_dir() else ()
    named = [path for path in found if _NAME.fullmatch(path.name)]
    real = [path for path in named if path.is_dir() and not os.path.islink(path)]
    return sorted(real, key=lambda path: -int(path.name))


def _sound(path: epath.Path) -> dict[str, Any] | None:
    """The metadata that was saved with the state; None if missing or changed."""
    try:
        beside = json.loads((path / _METADATA).read_bytes())["custom_metadata"]
        seal = beside.pop("seal")
        return beside if sealed(beside)["seal"] == seal else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError, KeyError):
        return None  # not JSON, or without these keys


def _orbax_metadata(path: epath.Path) -> Any:
    from orbax.checkpoint import v1 as orbax

    return orbax.training.CheckpointMetadata(int(path.name), path=path, metadata=None)
