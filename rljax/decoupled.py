"""A decoupled loop: the sampler has its own devices and runs ahead of the learner.

    sampler's devices      sample 1    sample 2    sample 3        staleness 1
    learner's devices      learn 0     learn 1     learn 2

Update t learns from samples of the policy before update t - staleness, or of the
initial policy if there were fewer updates. The schedule is fixed. So the numbers depend
only on the staleness, not on the devices or on which half is faster. With staleness 0
they are those of the coupled loop.

The host does not wait for devices. Programs and copies are queued on the devices, and
each starts when its inputs are ready. Only a verifier in Python waits, for samples that
were started `staleness` updates ago; meanwhile both halves are at work.

Between calls the rollouts that wait for their update are part of the state and of its
checkpoints: unlike the parameters that sampled them they are small.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rljax import check, mesh, metric, verdict
from rljax.learn import origin
from rljax.learn.update import Learner
from rljax.policy import returned
from rljax.policy.frozen import joined
from rljax.program import Act, Run, rollout_metrics
from rljax.run.phase import Stream
from rljax.types import Measure, Prompts, Rollout, TrainState, Verify


class Ahead(NamedTuple):
    """How far ahead the sampler is, and where it runs.

    staleness: updates of the policy between sampling and learning, at least 0.
    mesh, layout: the sampler's devices; without a mesh it runs on the learner's.
    measure_old: (params, prompts, samples) -> TokenStats; measures `rollout.old` with
      the parameters that the update begins with. The policy's ratios then begin at 1,
      and importance weights, `old` over `samples.behaviour`, correct the staleness (TIS
      and its relatives). None: `old` is the sampler's, and the policy's ratios correct
      the staleness.
    """

    staleness: int
    layout: mesh.Layout = mesh.PLAIN
    mesh: Mesh | None = None
    measure_old: Measure | None = None


def loop(
    act: Act, learner: Learner, verify: Verify | None, ahead: Ahead, *, in_graph: bool
) -> Run:
    """The decoupled loop, made from the parts of a coupled one.

    A call is one training step: it samples the prompts it is given and learns from the
    rollout that has waited longest. So the first call of a run needs `staleness`
    batches more, [1 + staleness, P, ...], and each later call [1, P, ...]; see `Early`.

    Args:
      act, learner, verify: as for `program.fused`.
      ahead: staleness and devices of the sampler.
      in_graph: whether the verifier can be traced; it then runs on the sampler's
        devices. Otherwise it is a Python function of NumPy arrays.

    Returns:
      (state, prompts) -> (state, metrics f32[1]). The state is donated. Its `ahead`
      holds the waiting rollouts, initially those made by `waiting`.
    """
    check.count("staleness", ahead.staleness, low=0)
    sample = jax.jit(_sampling(act, verify if in_graph else None))
    finish = jax.jit(_learning(learner, ahead), donate_argnums=0)
    move = _Mover(ahead)

    def run(state, prompts):
        num, frozen = prompts.tokens.shape[0], state.frozen
        policy, sampled = move.policy(state), []
        with mesh.using(ahead.mesh, ahead.layout):
            for i in range(num):
                batch = jax.tree.map(lambda x, i=i: x[i], prompts)
                batch = mesh.shard_prompts(batch, ahead.mesh, layout=ahead.layout)
                steps = np.int32(ahead.staleness + 1 - num + i)
                sampled.append(sample(policy, batch, steps))
        queue = [*state.ahead, *map(move.rollout, sampled)]
        # In the first call the front of the queue are the zeros of `waiting`: dropped.
        oldest, *later = queue[-1 - ahead.staleness :]
        if not in_graph and verify is not None:
            oldest = verdict.on_host(verify, oldest)
        learned = state.replace(frozen=None, ahead=None)
        state, metrics = finish(learned, frozen, oldest)
        return state.replace(frozen=frozen, ahead=tuple(later)), metrics

    return run


def waiting(
    act: Act, verify: Verify | None, state: TrainState, prompts: Prompts, staleness: int
) -> tuple[Rollout, ...]:
    """The initial `TrainState.ahead`: rollouts of zeros, which the first call discards.

    Args:
      act: makes rollouts, whose shapes are needed.
      verify: a traceable verifier, or None.
      state, prompts [P, ...]: arrays or their shapes.
      staleness: number of rollouts.
    """
    zeros = jax.eval_shape(_sampling(act, verify), state, prompts, np.int32(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
    return (zeros,) * staleness


class Early:
    """A stream of single batches whose first item holds `staleness` batches more.

    Its state is that of the wrapped stream, and whether the first item was taken.
    """

    def __init__(self, stream: Stream, staleness: int):
        self._stream, self._staleness, self._begun = stream, staleness, False

    def __next__(self) -> Prompts:
        more = 0 if self._begun else self._staleness
        items = [next(self._stream) for _ in range(1 + more)]
        self._begun = True
        return jax.tree.map(lambda *x: np.concatenate(x), *items)

    def get_state(self) -> dict[str, Any]:
        return {"stream": self._stream.get_state(), "begun": self._begun}

    def set_state(self, state: dict[str, Any]) -> None:
        self._stream.set_state(state["stream"])
        self._begun = state["begun"]


def _sampling(act: Act, verify: Verify | None) -> Callable[..., Rollout]:
    """(state, prompts, steps) -> the rollout for `steps` training steps later."""

    def sample(state, prompts, steps):
        version = jnp.full(prompts.length.shape, state.step)
        state = state.replace(step=state.step + steps, ahead=None)
        rollout = act(state, mesh.constrain(prompts)).replace(version=version)
        rollout = verdict.in_graph(verify, rollout)
        # Replicated, so that moving it to the learner needs no program to gather it.
        return jax.tree.map(lambda x: mesh.keep(x, *(None,) * x.ndim), rollout)

    return sample


def _learning(learner: Learner, ahead: Ahead) -> Callable:
    """(state, frozen, rollout) -> (state, metrics [1]); `frozen` is not donated."""

    def finish(state, frozen, rollout):
        state, rollout = mesh.keep_state(state), mesh.constrain(rollout)
        if ahead.measure_old is not None:
            with jax.named_scope("measure"):
                params = joined(state.params, frozen)
                old = ahead.measure_old(params, rollout.prompts, rollout.samples)
                old = returned.statistics(old, rollout.samples, "measure_old")
                rollout = rollout.replace(old=old, origin=origin.of(state.params, old))
        staleness = jnp.max(state.step - rollout.version)
        rollout = rollout.without("version")
        state, metrics = learner.learn(state.replace(frozen=frozen), rollout)
        metrics |= rollout_metrics(rollout)
        metrics["samples/staleness"] = metric.Max(staleness.astype(jnp.float32))
        state = mesh.keep_state(state.replace(frozen=None))
        return state, jax.tree.map(lambda x: x[None], metrics)

    return finish


class _Mover:
    """Moves parameters to the sampler's devices and rollouts to the learner's.

    It remembers its copy of the frozen parameters, so that they are moved only once.
    """

    def __init__(self, ahead: Ahead):
        self._ahead = ahead
        self._frozen = self._copy = None

    def policy(self, state: TrainState) -> TrainState:
        """The part of the state that sampling needs, on the sampler's devices.

        The reference is moved each time, as it may change.
        """
        needed = state.replace(optimizer=(), algorithm=(), gate=(), ahead=None)
        if self._ahead.mesh is None:
            return needed
        source = jax.sharding.get_mesh()
        there = source, self._ahead.mesh, self._ahead.layout
        if state.frozen is not self._frozen:
            self._frozen, self._copy = state.frozen, mesh.move(state.frozen, *there)
        moved = mesh.move(needed.replace(frozen=None), *there)
        return moved.replace(frozen=self._copy)

    def rollout(self, rollout: Rollout) -> Rollout:
        """The rollout on the learner's devices."""
        if self._ahead.mesh is None:
            return rollout
        return mesh.everywhere(rollout, jax.sharding.get_mesh())
