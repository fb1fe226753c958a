"""Trains all seeds and learning rates of an algorithm in one program.

The fused training step is vmapped over seeds, each with its own state and prompts, and
over learning rates, which are traced. The learning rates of a seed share its initial
parameters, prompts and key.

Symbols: `R` learning rates, `S` seeds, `K` training steps, `N` held-out problems.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import optimizer
from rljax import data, metric, program
from rljax.advantage import Algorithm
from rljax.evaluate import ask
from rljax.keys import Stream, stream
from rljax.learn import update
from rljax.metric import Fault
from rljax.policy import Policy
from rljax.rollout import mixed
from rljax.rollout.sample import greedy, sampler
from rljax.run import fault
from rljax.types import Prompts, Sampler, Verify

Verdicts = tuple[np.ndarray, np.ndarray]
"""Whether samples bool[R, S, N, 8] and greedy completions bool[R, S, N] are correct."""


class History(NamedTuple):
    """The training history of a population.

    steps: training steps at each of the E evaluations, from 0 on.
    asked: verdicts of each evaluation.
    metrics: name -> f32[R, S, training steps].
    params: at the end, [R, S, ...].
    """

    steps: list[int]
    asked: list[Verdicts]
    metrics: dict[str, np.ndarray]
    params: Any


def keys(seed: int, num: int) -> jax.Array:
    """key[S]: the key of each seed."""
    return jax.vmap(jax.random.key)(jnp.arange(seed, seed + num))


def of_part(keys: jax.Array, part: int) -> jax.Array:
    """key[S]: the keys of a part of the run; part 1 is the warm start."""
    return jax.vmap(lambda key: stream(key, Stream.PHASE, part - 1))(keys)


def streams(
    prompts: Prompts, seeds: range, *, part: int, num_prompts: int, steps: int, map_fn
) -> Iterator[Prompts]:
    """Batches [S, K, P, ...]; each seed has its own stream in each part of a run.

    Args:
      prompts: of the task, NumPy.
      seeds: the S seeds.
      part: number of the part of the run.
      num_prompts: P.
      steps: K, training steps per dispatch.
      map_fn: (prompts, rng) -> prompts, applied to each batch.
    """
    each = [
        data.stream(
            prompts,
            num_prompts=num_prompts,
            seed=1000 * part + seed,
            steps_per_dispatch=steps,
            map_fn=map_fn,
        )
        for seed in seeds
    ]
    while True:
        yield jax.tree.map(lambda *x: np.stack(x), *map(next, each))


def imitate(
    policy: Policy, learner: update.Learner, keys: jax.Array, batches, dispatches: int
) -> Any:
    """Trains new policies on demonstrations; returns their parameters [S, ...].

    Args:
      policy: to train.
      learner: of the imitation.
      keys: key[S].
      batches: prompts [S, K, P, ...], with demonstrations.
      dispatches: number of batches.
    """

    def begin(key, own):
        return learner.init(policy.init(stream(key, Stream.PARAMETERS)), own)

    act = program.actor(policy, mixed.stored_answers())
    run = jax.jit(jax.vmap(program.fused(act, learner)), donate_argnums=0)
    state = jax.jit(jax.vmap(begin))(keys, of_part(keys, 1))
    for _ in range(dispatches):
        state, _ = run(state, next(batches))
    return state.params


class Parts(NamedTuple):
    """What trains; make_learner: learning rate (traced) -> learner."""

    policy: Policy
    sample: Sampler
    verify: Verify
    make_learner: Callable[[jax.Array], update.Learner]


def train(
    parts: Parts,
    params: Any,
    keys: jax.Array,
    rates: tuple[float, ...],
    batches: Iterator[Prompts],
    dispatches: int,
    evaluate: Callable[[Any], Verdicts],
    show: Callable[[int, Verdicts], None] = lambda step, asked: None,
) -> History:
    """Trains R x S policies, starting from the parameters of each seed.

    Args:
      parts: what trains.
      params: [S, ...], initial parameters.
      keys: key[S] of this part of the run, see `of_part`.
      rates: R learning rates.
      batches: prompts [S, K, P, ...].
      dispatches: number of batches.
      evaluate: params [R, S, ...] -> verdicts; called before the first and after every
        dispatch.
      show: (training step, verdicts) -> None, called after each evaluation.

    Raises:
      RunFault: if one of the policies reports a fault.
    """

    def begin(params, key):
        return parts.make_learner(jnp.float32(0)).init(params, key)

    def member(state, prompts, rate):
        act = program.actor(parts.policy, parts.sample)
        run = program.fused(act, parts.make_learner(rate), parts.verify)
        return run(state, prompts)

    def over(fn, seeds, rates):
        return jax.vmap(jax.vmap(fn, seeds), rates)

    many = jax.vmap(jax.vmap(begin), in_axes=None, axis_size=len(rates))
    state = jax.jit(many)(params, keys)
    run = jax.jit(over(member, (0, 0, None), (0, None, 0)), donate_argnums=0)
    rate = jnp.asarray(rates, jnp.float32)
    step, steps, asked, rows = 0, [0], [evaluate(state.params)], []
    show(0, asked[-1])
    for _ in range(dispatches):
        state, metrics = run(state, next(batches), rate)
        metrics = jax.device_get(metrics)
        faults, metrics = metric.faults(metrics), metric.numbers(metrics)
        worst = {k: Fault(np.max(np.abs(v), (0, 1))) for k, v in faults.items()}
        if (wrong := fault.find_fault(step, worst)) is not None:
            raise fault.RunFault(wrong)
        step += metrics["update/steps"].shape[-1]
        rows.append(metrics)
        steps.append(step)
        asked.append(evaluate(state.params))
        show(step, asked[-1])
    metrics = {k: np.concatenate([row[k] for row in rows], -1) for k in rows[0]}
    return History(steps, asked, metrics, state.params)


def evaluator(
    policy: Policy,
    verify: Verify,
    prompts: Prompts,
    *,
    size: int,
    max_tokens: int,
    stop_tokens: tuple[int, ...],
) -> Callable[[Any], Verdicts]:
    """Makes params [R, S, ...] -> verdicts: 8 samples per problem and a greedy one.

    All policies are sampled with the same random numbers, at every evaluation.

    Args:
      policy, verify, prompts: of the task.
      size: problems at a time.
      max_tokens, stop_tokens: of the samplers.
    """
    common = {"max_tokens": max_tokens, "stop_tokens": stop_tokens}
    sampled = ask.ask(sampler(policy, num_samples=8, **common), verify)
    likely = ask.ask(greedy(policy, **common), verify)

    def both(params, prompts):
        return sampled(params, prompts).correct, likely(params, prompts).correct[:, 0]

    run = jax.jit(jax.vmap(jax.vmap(both, (0, None)), (0, None)))
    return ask.in_batches(run, prompts, size, axis=2)


def learner(
    policy: Policy,
    algorithm: Algorithm,
    optimizer_fn: Callable[[optax.Schedule], optax.GradientTransformation],
    *,
    num_steps: int,
    num_minibatches: int,
) -> Callable[[jax.Array], update.Learner]:
    """Makes learning rate (traced) -> learner, with the schedule `linear_decay`."""
    shape = optimizer.linear_decay(1.0, num_steps * num_minibatches)

    def make(rate):
        return update.learner(
            policy.measure,
            algorithm,
            optimizer_fn(lambda count: rate * shape(count)),
            num_minibatches=num_minibatches,
        )

    return make


def save(path, tree: dict) -> None:
    """Writes nested dicts of arrays to one .npz file, atomically."""
    new = path.with_suffix(".new.npz")
    np.savez_compressed(new, **dict(_flat(jax.device_get(tree))))
    new.rename(path)


def load(path) -> dict:
    """Reads what `save` wrote."""
    tree: dict = {}
    with np.load(path) as file:
        for name in file:
            *parents, leaf = name.split("::")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = file[name]
    return tree


def _flat(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}::")
        else:
            yield prefix + name, np.asarray(value)
