"""A decoupled loop: the sampler has devices of its own, and runs ahead of the learner.

    sampler's devices      sample 1    sample 2    sample 3        staleness 1
    learner's devices      learn 0     learn 1     learn 2

Update t learns from samples of the policy before update t - staleness; of the first one
while there were not so many updates. The schedule is fixed, so the numbers depend on
the staleness alone, neither on devices nor on which half is faster. With staleness 0
they are those of the coupled loop.

No host waits for a device here. Programs and copies stand in the queues of the devices,
and each begins when what it reads is there. Only a verifier in Python waits, for
samples that were begun `staleness` updates ago, while both halves are at work.

Between calls the rollouts that wait for their update are a part of the state, and of
its checkpoints: they are small, where the parameters that sampled them are not.
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
    mesh, layout: of the sampler's devices; no mesh, those of the learner.
    measure_old: (params, prompts, samples) -> TokenStats, becomes `rollout.old`, with
      the parameters that the update begins with. Then ratios of the policy begin at 1,
      and importance weights, `old` over `samples.behaviour`, correct the staleness:
      TIS and its relatives. None: `old` is the sampler's, and ratios correct it.
    """

    staleness: int
    layout: mesh.Layout = mesh.PLAIN
    mesh: Mesh | None = None
    measure_old: Measure | None = None


def loop(
    act: Act, learner: Learner, verify: Verify | None, ahead: Ahead, *, in_graph: bool
) -> Run:
    """The decoupled loop, of the parts of a coupled one.

    A call is one training step: it samples the prompts that it is given and learns from
    those that have waited longest. So the first call of a run is given `staleness`
    batches more, [1 + staleness, P, ...], and each later one [1, P, ...]; see `Early`.

    Args:
      act, learner, verify: as `program.fused` takes them.
      in_graph: whether the verifier is traced, and then judges where samples are drawn,
        or a Python function of NumPy arrays.

    Returns:
      (state, prompts) -> (state, metrics f32[1]). The state is donated; `ahead` of it
      holds the rollouts that wait, at first those of `waiting`.
    """
    check.count("staleness", ahead.staleness, low=0)
    sample = jax.jit(_sampling(act, verify if in_graph else None))
    finish = jax.jit(_learning(learner, ahead), donate_argnums=0)
    move = _Mover(ahead)

    def run(state, prompts):
        num, frozen = prompts.tokens.shape[0], state.frozen
        policy, rollouts = move.policy(state), list(state.ahead)
        with mesh.using(ahead.mesh, ahead.layout):
            for i in range(num):
                batch = jax.tree.map(lambda x, i=i: x[i], prompts)
                batch = mesh.shard_prompts(batch, ahead.mesh, layout=ahead.layout)
                steps = np.int32(ahead.staleness + 1 - num + i)
                rollouts.append(sample(policy, batch, steps))
        rollouts[-num:] = map(move.rollout, rollouts[-num:])
        rollout, *waiting = rollouts[-1 - ahead.staleness :]
        if not in_graph and verify is not None:
            rollout = verdict.on_host(verify, rollout)
        learned = state.replace(frozen=None, ahead=None)
        state, metrics = finish(learned, frozen, rollout)
        return state.replace(frozen=frozen, ahead=tuple(waiting)), metrics

    return run


def waiting(
    act: Act, verify: Verify | None, state: TrainState, prompts: Prompts, staleness: int
) -> tuple[Rollout, ...]:
    """What `TrainState.ahead` begins with: zeros, that the first call throws away.

    Args:
      verify: a verifier in the graph, or None.
      state, prompts [P, ...]: arrays or their shapes.
    """
    zeros = jax.eval_shape(_sampling(act, verify), state, prompts, np.int32(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), zeros)
    return (zeros,) * staleness


class Early:
    """A stream of single batches whose first item holds `staleness` more.

    Its state is that of the stream, and whether the first item was given.
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
    """(state, prompts, steps) -> the rollout of the step that comes so many later."""

    def sample(state, prompts, steps):
        version = jnp.full(prompts.length.shape, state.step)
        state = state.replace(step=state.step + steps, ahead=None)
        rollout = act(state, mesh.constrain(prompts)).replace(version=version)
        rollout = verdict.in_graph(verify, rollout)
        # A copy on each device: no program of the learner's need run to spread it.
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
    """Moves weights to the sampler's devices and rollouts to the learner's.

    It remembers parameters that nothing moves, so that they are copied once.
    """

    def __init__(self, ahead: Ahead):
        self._ahead = ahead
        self._frozen = self._copy = None

    def policy(self, state: TrainState) -> TrainState:
        """What a policy is sampled from; the learner's own arrays stay where they are.

        The optimiser stays behind. A reference goes along each time, as it may follow.
        """
        seen = state.replace(optimizer=(), algorithm=(), gate=(), ahead=None)
        if self._ahead.mesh is None:
            return seen
        source = jax.sharding.get_mesh()
        there = source, self._ahead.mesh, self._ahead.layout
        if state.frozen is not self._frozen:
            self._frozen, self._copy = state.frozen, mesh.move(state.frozen, *there)
        moved = mesh.move(seen.replace(frozen=None), *there)
        return moved.replace(frozen=self._copy)

    def rollout(self, rollout: Rollout) -> Rollout:
        if self._ahead.mesh is None:
            return rollout
        return mesh.everywhere(rollout, jax.sharding.get_mesh())
