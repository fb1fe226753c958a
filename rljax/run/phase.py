"""The phases of a run, and which of them a checkpoint was saved in."""

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
    """An endless iterator over Prompts of NumPy arrays [K, P, ...].

    Its state says how many items were handed out. It is JSON-able and is saved in every
    checkpoint.
    """

    def __next__(self) -> Prompts: ...

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of a run: such as the warm start, then reinforcement learning.

    name: shown and recorded; unique in a run.
    run: (state, prompts [K, P, ...]) -> (state, metrics f32[K], which say how they add
      up, see `rljax.metric`); the state is donated.
    stream: where the prompts come from.
    num_steps: training steps, a multiple of steps_per_dispatch.
    steps_per_dispatch: `K`.
    begin: state -> state, called once when the phase begins, for example to start a
      new optimiser. It must have no side effects.
    evaluate: state -> metrics by name, or None; must not donate the state. Under
      `COMPLETIONS` it may hold some completions to show, dicts of texts.
    evaluate_every: training steps between evaluations, at the first dispatch boundary
      from there on. The last step of a phase is always evaluated. The start of a phase
      is evaluated unless the phase before was evaluated at its end.
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
    """Raises ValueError unless there are phases, of different names."""
    names = [phase.name for phase in phases]
    if not names or len(set(names)) != len(names):
        raise ValueError(
            f"phases must be at least one and have different names, got {names}; name"
            " each after what it does."
        )


def phase_of(phases: Sequence[Phase], found: checkpoint.Found) -> int:
    """The phase that a checkpoint was saved in."""
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
    """Templates of the state in each phase up to the one of a checkpoint.

    All are made at once and in order, because `begin` may consume the state.

    Returns:
      The templates, and the state if nothing was saved yet, else None.
    """
    templates = []
    if newest is not None:
        for phase in phases[: phase_of(phases, newest) + 1]:
            state = phase.begin(state)  # not to train on, only for its structure
            templates.append(checkpoint.template(state))
    return templates, None if templates else state
