"""The policies of a run folder: `policy`, the last one, and `policy-best`.

Beside them, `model` holds all of a policy but its weights: `rljax.export` adds those
of a checkpoint.

Each is a Hugging Face folder with one file more, which says of which step it is. A new
one is complete before it takes the place of the old one, so a kill leaves one of them.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rljax import mesh, processes
from rljax.model import Model
from rljax.policy.lora import Lora
from rljax.types import TrainState

LAST, BEST = "policy", "policy-best"
FILE = "training.json"
MODEL, LEAVES = "model", "checkpoint.json"

Save = Callable[[pathlib.Path], None]


def put(run_dir: pathlib.Path, name: str, save: Save, facts: Mapping[str, Any]) -> None:
    """Writes a policy, unless the one of the same facts is there.

    Args:
      name: `LAST` or `BEST`.
      save: path -> None, makes the folder.
      facts: of which step it is.

    Raises:
      OSError: if it cannot be written; the old one is there.
    """
    target, new, old = settled(run_dir, name)
    if facts_of(run_dir, name) == dict(facts):
        return
    try:
        save(new)
        (new / FILE).write_text(json.dumps(dict(facts), indent=2) + "\n")
        if target.exists():
            target.rename(old)
        new.rename(target)
    finally:
        settled(run_dir, name)


def written(arrays: Any, write: Callable[[Any], None]) -> None:
    """The leader writes whole arrays, of which other processes may hold parts."""
    if processes.count() > 1:
        arrays = processes.fetch(arrays)
    if processes.leads():
        with mesh.alone():
            write(arrays)


def settled(run_dir: pathlib.Path, name: str) -> tuple[pathlib.Path, ...]:
    """Takes up what a kill left; where the policy is, comes from, and goes to."""
    target, new, old = (run_dir / x for x in (name, f".{name}.new", f".{name}.old"))
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    return target, new, old


def facts_of(run_dir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Of which step a policy is; None if there is none, or it does not say."""
    try:
        found = json.loads((run_dir / name / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Best:
    """Keeps the policy with the best pass@1 on validation, the first of equals.

    After a resume it may be of a step that the run has not reached again: what comes
    there is the same policy.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self._failing = False
        settled(run_dir, BEST)

    def is_beaten_by(self, metrics: Mapping[str, float]) -> bool:
        kept = facts_of(self._run_dir, BEST) or {}
        return metrics["pass@1"] > kept.get("pass@1", -1.0)

    def offer(self, metrics: Mapping[str, float], save: Save, facts: Mapping) -> None:
        """Takes the policy if it is better; a full disk is told, and ends no run."""
        if not self.is_beaten_by(metrics):
            return
        values = {"pass@1": float(metrics["pass@1"])}
        try:
            put(self._run_dir, BEST, save, {**facts, **values})
        except OSError as error:
            if not self._failing:
                print(f"{self._run_dir / BEST}: {error}; the run goes on without it")
            self._failing = True
            return
        self._failing = False


def keep_origin(
    run_dir: pathlib.Path,
    model: Model,
    state: TrainState,
    decoder: Callable[[TrainState], Any],
    lora: Lora | None = None,
) -> None:
    """Writes into a run folder what `rljax.export` needs beside a checkpoint, once.

    Args:
      state: shapes of what is trained.
      decoder: state -> the decoder's parameters, adapters beside.
      lora: which adapters these are, to be merged.
    """
    target = run_dir / MODEL
    if target.exists():
        return
    new = target.with_name(f".{MODEL}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    model.describe(new)
    facts: dict[str, Any] = {"params": _sources(state, decoder)}
    if lora is not None:
        facts["lora"] = dataclasses.asdict(lora)
    (new / LEAVES).write_text(json.dumps(facts, indent=2) + "\n")
    new.rename(target)


def _sources(
    state: TrainState, decoder: Callable[[TrainState], Any]
) -> dict[str, str] | None:
    """Decoder's leaf -> the state's leaf that it is; None if it is computed."""
    names = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), state)
    try:
        chosen = jax.tree.leaves_with_path(decoder(names))
        found = {jax.tree_util.keystr(path): name for path, name in chosen}
        known = set(found.values()) <= set(jax.tree.leaves(names))
    except Exception:  # a function of arrays does not take names
        return None
    return found if known else None
