"""Every recipe's step at the token statistics, on rollouts made up for it, op by op."""

import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
from algorithm_cases import CASES, OWN, Case, G

from rljax.types import Rollout, TokenStats

P, T = 9, 5
STATISTICS = ("old", "behaviour", "reference", "teacher")


def rollout(case: Case) -> Rollout:
    """Groups of 0 to G right answers, statistics up to 0.5 nats from the current ones.

    `current` is the policy being updated; sources are those the case needs.
    """
    right = np.arange(G) < (np.arange(P) % (G + 1))[:, None]
    rows = fakes.rollout(P, G, T, reward=right)
    sources = case.others * G if case.only else (OWN,) * G
    sources = (*sources[: G - len(case.others)], *case.others)
    samples = rows.samples.replace(source=jnp.tile(jnp.asarray(sources), (P, 1)))
    draw = np.random.default_rng(1)

    def near(now: TokenStats) -> TokenStats:
        moved = jax.tree.map(lambda x: x + jnp.asarray(noise(x), x.dtype), now)
        return moved.replace(logp=jnp.minimum(moved.logp, 0.0))

    def noise(x):
        return draw.uniform(-0.5, 0.5, x.shape)

    names = ("value", "consistency", "kl_reverse", "kl_forward", "chi_squared")
    extra = {k: jnp.asarray(draw.random((P, G, T)), jnp.float32) for k in names}
    now = rows.current.replace(extra=extra)
    stats = {name: near(now) for name in ("old", "reference", "teacher")}
    return rows.replace(
        prompts=rows.prompts.replace(data=fakes.stored_last(samples)),
        samples=samples.replace(behaviour=near(now)),
        current=now,
        **stats,
    )


def with_logp(rows: Rollout, name: str, logp) -> Rollout:
    """The rollout with other log-probabilities of one of the `STATISTICS`."""
    if name != "behaviour":
        return rows.replace(**{name: getattr(rows, name).replace(logp=logp)})
    drawn = rows.samples.behaviour.replace(logp=logp)
    return rows.replace(samples=rows.samples.replace(behaviour=drawn))


def logp_of(rows: Rollout, name: str):
    return (rows.samples.behaviour if name == "behaviour" else getattr(rows, name)).logp


def step(algorithm, rows: Rollout):
    """(loss, its gradient at the masked statistics, state, metrics) of one step."""
    credits, state, first = algorithm.credit(rows, algorithm.init())
    credits, state, metrics = algorithm.weigh(credits, rows, state)
    loss, pull = jax.value_and_grad(algorithm.loss)(rows.current, credits, rows)
    mask = rows.samples.mask
    pull = jax.tree.map(lambda x: jnp.where(mask, x, 0.0), pull)
    return loss, pull, state, first | metrics


@functools.cache
def stepped(name: str):
    """The recipe's rollout and its step, mapped over changes of it.

    Every array of the rollout is mapped, changed or not: so all laws run the same
    operations, which are compiled once if they change it equally often.
    """
    case = CASES[name]
    rows = rollout(case)

    def over(change, *values):
        changed = jax.vmap(lambda *v: change(rows, *v))(*values)
        return jax.vmap(lambda rows: step(case.algorithm, rows))(changed)

    return rows, over
