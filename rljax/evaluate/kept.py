"""The policies in a run folder: `policy`, the last one, and `policy-best`.

Each is a Hugging Face folder with a further file that names its training step. A new
policy is written completely before it replaces the old one, so that a kill leaves one
of them whole.

Beside them, `model` holds everything of a policy except its weights; `rljax.export`
adds the weights of a checkpoint.
"""

import dataclasses
import functools
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
    """Writes a policy, unless one with the same facts is already there.

    Args:
      run_dir: the run folder.
      name: `LAST` or `BEST`.
      save: path -> None, writes the Hugging Face folder.
      facts: identify the policy: its phase, its step.

    Raises:
      OSError: if it cannot be written; the old policy is kept.
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
    """Gathers arrays that processes hold parts of; the leader writes them."""
    if processes.count() > 1:
        arrays = processes.fetch(arrays)
    if processes.leads():
        with mesh.alone():
            write(arrays)


def settled(run_dir: pathlib.Path, name: str) -> tuple[pathlib.Path, ...]:
    """Cleans up after a kill; returns the paths of the policy, a new and an old one."""
    target, new, old = (run_dir / x for x in (name, f".{name}.new", f".{name}.old"))
    if old.exists() and not target.exists():
        old.rename(target)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    return target, new, old


def facts_of(run_dir: pathlib.Path, name: str) -> dict[str, Any] | None:
    """The facts of a policy in the run folder; None if there are none."""
    try:
        found = json.loads((run_dir / name / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Best:
    """Keeps the policy with the best pass@1 on validation, the first of equal ones.

    After a resume it may belong to a step that the run has not reached again; the run
    will reach the same policy there.
    """

    def __init__(self, run_dir: pathlib.Path):
        self._run_dir = run_dir
        self._failing = False
        settled(run_dir, BEST)

    def is_beaten_by(self, metrics: Mapping[str, float]) -> bool:
        """Whether a policy with these metrics has a higher pass@1 than the kept one."""
        kept = facts_of(self._run_dir, BEST) or {}
        return metrics["pass@1"] > kept.get("pass@1", -1.0)

    def offer(self, metrics: Mapping[str, float], save: Save, facts: Mapping) -> None:
        """Keeps the policy if it is better; prints if it cannot be written."""
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


def offer(
    best: Best | None,
    metrics: Mapping[str, float],
    facts: Mapping[str, Any],
    params: Callable[[], Any],
    save: Callable[..., None],
) -> None:
    """Keeps a policy if it is the best so far; the leader, who has `best`, decides.

    Args:
      best: None in other processes.
      metrics, facts: of the policy.
      params: () -> its parameters, called only if it is the best.
      save: (path, params=), makes its folder.
    """

    def is_better():
        return best is not None and best.is_beaten_by(metrics)

    def offer_whole(params):
        if best is not None:
            best.offer(metrics, functools.partial(save, params=params), facts)

    if processes.from_leader("a better policy", is_better):
        written(params(), offer_whole)


def keep_origin(
    run_dir: pathlib.Path,
    model: Model,
    state: TrainState,
    decoder: Callable[[TrainState], Any],
    lora: Lora | None = None,
) -> None:
    """Writes what `rljax.export` needs beside a checkpoint, unless it exists already.

    Args:
      run_dir: the run folder.
      model: describes the decoder.
      state: shapes of the training state.
      decoder: state -> the decoder's parameters, with adapters if there are any.
      lora: describes these adapters; None: there are none.
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
    """Path of each decoder leaf -> path of the same leaf in the state.

    None if `export` computes a leaf instead of selecting it.
    """
    names = jax.tree.map_with_path(lambda path, _: jax.tree_util.keystr(path), state)
    try:
        chosen = jax.tree.leaves_with_path(decoder(names))
        found = {jax.tree_util.keystr(path): name for path, name in chosen}
        known = set(found.values()) <= set(jax.tree.leaves(names))
    except Exception:  # it computes with its leaves, which are names here
        return None
    return found if known else None
