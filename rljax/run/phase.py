"""The phases of a run, and the phase that a checkpoint belongs to."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from rljax import check, metric
from rljax.run import checkpoint
from rljax.types import Prompts, TrainState

COMPLETIONS = "completions"
Metrics = Mapping[str, jax.Array | metric.Metric]


class Stream(Protocol):
    """An endless iterator over `Prompts` of NumPy arrays [K, P, ...].

    Its state says how many items it has returned. The state must be JSON-able; every
    checkpoint saves it.
    """

    def __next__(self) -> Prompts:
        """The prompts of the next K training steps."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position in the stream."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves the stream to a position that `get_state` returned."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run, such as the warm start or reinforcement learning.

    name: shown and recorded; unique in a run.
    run: (state, prompts [K, P, ...]) -> (state, metrics by name); donates the state.
      Each metric has values f32[K] and says how they add up (`rljax.metric`).
    stream: of the prompts.
    num_steps: training steps; a multiple of steps_per_dispatch.
    steps_per_dispatch: `K`, training steps per call of `run`.
    begin: state -> state, called when the phase begins, for example to start a new
      optimiser. It must have no side effects.
    evaluate: state -> values by name; must not donate the state. Under `COMPLETIONS` it
      may return some completions to show, as dicts of texts. None: no evaluation.
    evaluate_every: training steps between evaluations; they take place at the next
      dispatch boundary. The last step of a phase is always evaluated. The start of a
      phase is evaluated unless the previous phase was evaluated at its end.
    """

    name: str
    run: Callable[[TrainState, Prompts], tuple[TrainState, Metrics]]
    stream: Stream
    num_steps: int
    steps_per_dispatch: int
    begin: Callable[[TrainState], TrainState] = lambda state: state
    evaluate: Callable[[TrainState], Mapping[str, Any]] | None = None
    evaluate_every: int = 1

    def __post_init__(self):
        for name in ("num_steps", "steps_per_dispatch", "evaluate_every"):
            check.count(name, getattr(self, name))
        if self.num_steps % self.steps_per_dispatch:
            raise ValueError(
                "num_steps must be a multiple of steps_per_dispatch, got"
                f" {self.num_steps} and {self.steps_per_dispatch} in phase"
                f" {self.name!r}; change one of them."
            )


def check_phases(phases: Sequence[Phase]) -> None:
    """Raises ValueError unless there is a phase and all names differ."""
    names = [phase.name for phase in phases]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"phases must be at least one and have different names, got {names}; name"
            " each phase after what it does."
        )


def phase_of(phases: Sequence[Phase], found: checkpoint.Found) -> int:
    """The index of the phase in which a checkpoint was saved.

    Raises:
      ValueError: if the phases are not those of the checkpoint's run.
    """
    info = found.info
    index, done = info["phase"], info["phase_step"]
    if index >= len(phases) or (
        phases[index].name != info["phase_name"] or phases[index].num_steps < done
    ):
        raise ValueError(
            f"the phases must be those that {found.path} was saved in, after"
            f" {done} steps of phase {info['phase_name']!r}, got"
            f" {[(p.name, p.num_steps) for p in phases]}; choose another run folder."
        )
    return index


def templates_of(
    phases: Sequence[Phase], state: TrainState, newest: checkpoint.Found | None
) -> tuple[list[Any], Any]:
    """Templates of the state in each phase, up to the phase of a checkpoint.

    They are made at once and in order, because `begin` may consume the state.

    Args:
      phases: of the run.
      state: at the start of the first phase; consumed if there is a checkpoint.
      newest: the checkpoint, or None.

    Returns:
      The templates and None; without a checkpoint, [] and the state.
    """
    templates = []
    if newest is not None:
        for phase in phases[: phase_of(phases, newest) + 1]:
            state = phase.begin(state)  # only its structure is used
            templates.append(checkpoint.template(state))
    return templates, None if templates else state
