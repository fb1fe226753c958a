"""Analytic masses: what a method does to a group with c of its G samples correct.

    m_S = p A_S,  m_F = -(1 - p) A_F,  p = c / G;   on-policy  f'(p) = m_S / p + m_F / q

The method's own advantage chain is run on c = 0..G, so that no formula is written
twice. For a prompt with true solve rate p, c is binomial and expectations are exact
sums: E[m_S] / p + E[m_F] / q = f'(p) is the slope of the objective that finite groups
really optimise. All results are NumPy arrays on the host.

Source: arXiv:2607.01490 (framework SECONDARY; the identity DERIVED).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rljax import check, metric, numerics
from rljax.advantage.algebra import AdvantageTransform, Algorithm, initial_credit
from rljax.types import Prompts, Rollout, Samples, TokenStats, Verdict


class Profile(NamedTuple):
    """A method as a table over c = 0..G; each float64[G + 1].

    A_S, A_F: advantage of successes and of failures; 0 if a group has none.
    m_S, m_F: masses by class, with their sign: m_F < 0 pushes failures up.
    """

    A_S: np.ndarray
    A_F: np.ndarray
    m_S: np.ndarray
    m_F: np.ndarray

    @property
    def p(self) -> np.ndarray:
        """Solve rates c / G."""
        return np.linspace(0.0, 1.0, len(self.A_S))


def advantage_of(algorithm: Algorithm) -> AdvantageTransform:
    """The advantage chain of an algorithm's first term as a transform."""
    check.kind("algorithm", algorithm, Algorithm, "algorithms.grpo()")

    def update(credit, rollout, state):
        del credit
        credits, state, metrics = algorithm.credit(rollout, state)
        return credits[0].log(**metrics), state

    return AdvantageTransform(algorithm.init, update)


def analytic(
    transform: AdvantageTransform, num_samples: int, *, company: tuple[int, ...] = ()
) -> Profile:
    """Runs an advantage chain, from its initial state, on c = 0..G successes.

    Rewards are 0 and 1, lengths equal, log-probabilities constant.

    Args:
      transform: the chain; `advantage_of(algorithm)` for a recipe.
      num_samples: G.
      company: success counts of further groups in the same batch, for methods whose
        advantage depends on them.

    Raises:
      ValueError: if the method depends on the rest of the batch and `company` is empty;
        if it depends on log-probabilities; or if it reports a fault, such as a missing
        greedy sample. The last two have only measured masses (`rljax.advantage.mass`).
    """
    counts = np.arange(num_samples + 1)
    # Three batches: each c beside itself, beside another c, and beside itself with
    # other log-probabilities. Their differences show what the method depends on.
    others = [counts[:, None], np.roll(counts, num_samples // 2)[:, None]]
    if company:
        others = [np.broadcast_to(company, (len(counts), len(company)))] * 2
    batches = [np.column_stack([counts, o]) for o in (*others, others[0])]

    @jax.jit
    @jax.vmap
    def run(batch, spread):
        a, faults = _classes(transform, batch, num_samples, spread)
        return a[:, 0], faults

    spread = np.repeat([0.0, 0.0, 1.0], len(counts)).astype(np.float32)
    result, faults = run(np.concatenate(batches).astype(np.int32), spread)
    table, together, moved = np.split(np.asarray(result), 3)
    bad = [name for name, count in faults.items() if np.any(count != 0)]
    if bad:
        raise ValueError(
            f"analytic needs a method without faults on rewards 0 and 1, got {bad};"
            " measure its masses on a real batch (rljax.advantage.mass)."
        )
    _require_same(table, moved, "log-probabilities", "measure masses on a real batch")
    _require_same(table, together, "the rest of the batch", "pass company=(c, ...)")
    A_S, A_F = np.asarray(table, np.float64).T
    p = np.linspace(0.0, 1.0, num_samples + 1)
    return Profile(A_S, A_F, p * A_S, -(1 - p) * A_F)


def _require_same(a, b, what, remedy):
    if not np.allclose(a, b, rtol=1e-3, atol=1e-5):
        raise ValueError(
            "analytic needs an advantage that is a function of the group's successes,"
            f" got one that depends on {what}; {remedy}."
        )


def _classes(transform, counts, num_samples, spread):
    """((A_S, A_F) f32[2, P] of a batch with these success counts, its faults)."""
    rollout = _rollout(counts, num_samples, spread)
    credit, _ = transform.update(
        initial_credit(rollout), rollout, numerics.strongly_typed(transform.init())
    )
    row = jnp.mean(credit.advantage, -1)
    correct = rollout.verdict.correct
    means = [numerics.masked_mean(row, rows, -1) for rows in (correct, ~correct)]
    return jnp.stack(means), metric.faults(credit.metrics)


def _rollout(counts, num_samples, spread):
    """One-token completions; the first `counts[i]` of prompt i are correct."""
    P, G = counts.shape[0], num_samples
    place = jnp.arange(G, dtype=jnp.int32)[None]
    correct = place < counts[:, None]
    zero = jnp.zeros((P, G, 1), jnp.float32)
    logp = zero - 1 - spread * place[..., None].astype(jnp.float32) / G
    stats = TokenStats(logp=logp, entropy=zero + 1)
    ids = jnp.arange(P, dtype=jnp.int32)
    return Rollout(
        prompts=Prompts(tokens=ids[:, None], length=jnp.ones_like(ids), id=ids),
        samples=Samples(
            tokens=jnp.zeros((P, G, 1), jnp.int32),
            mask=jnp.ones((P, G, 1), bool),
            source=jnp.zeros((P, G), jnp.int32),
            finished=jnp.ones((P, G), bool),
            behaviour=stats,
        ),
        verdict=Verdict.binary(correct),
        old=stats,
    )


def binomial(num_samples: int, p) -> np.ndarray:
    """float64[..., G + 1]: probability of c = 0..G successes at solve rates p."""
    p = np.asarray(p, np.float64)[..., None]
    c = np.arange(num_samples + 1)
    lgamma = np.array([math.lgamma(k + 1) for k in c])
    choose = lgamma[-1] - lgamma - lgamma[::-1]
    return np.exp(choose + c * np.log(p) + (num_samples - c) * np.log1p(-p))


def expected(profile: Profile, p) -> tuple[np.ndarray, np.ndarray]:
    """(E[m_S], E[m_F]) of a group whose prompt has true solve rate p in (0, 1)."""
    chance = binomial(len(profile.m_S) - 1, p)
    return chance @ profile.m_S, chance @ profile.m_F


def slope(profile: Profile, p) -> np.ndarray:
    """f'(p) = E[m_S] / p + E[m_F] / q, the slope of the objective on-policy."""
    p = np.asarray(p, np.float64)
    m_S, m_F = expected(profile, p)
    return m_S / p + m_F / (1 - p)


class Place(NamedTuple):
    """A method's coordinates for a distribution of prompts.

    log_ratio: log of total upward over total downward mass; +-inf if one is 0.
    difficulty: solve rate of the groups, weighted by mass.
    scale: mean mass of a group.
    """

    log_ratio: float
    difficulty: float
    scale: float


def place(profile: Profile, p=None) -> Place:
    """The method's sign, difficulty and scale, as defined in `advantage.mass.summary`.

    Args:
      profile: the method's table.
      p: true solve rates of the prompts, in (0, 1); None is a uniform distribution.

    Raises:
      ValueError: if the method has no mass.
    """
    p = (np.arange(200) + 0.5) / 200 if p is None else np.asarray(p, np.float64)
    chance = np.mean(binomial(len(profile.m_S) - 1, p.ravel()), 0)  # of c = 0..G
    push = np.stack([profile.m_S, -profile.m_F])  # > 0 pushes up, < 0 down
    up, down = chance * np.maximum(push, 0).sum(0), chance * np.maximum(-push, 0).sum(0)
    total = np.sum(up + down)
    if not total > 0:
        raise ValueError(
            "place needs a method with mass, got one that is 0 for all c; pass another."
        )
    with np.errstate(divide="ignore"):
        ratio = np.log(up.sum()) - np.log(down.sum())
    difficulty = np.sum((up + down) * profile.p) / total
    return Place(float(ratio), float(difficulty), float(total))


def equalised(profile: Profile) -> Profile:
    """The table divided by its scale, so that the mean mass of a group is 1.

    The mean is over prompts with uniformly distributed true solve rates. A scale only
    changes the effective learning rate.
    """
    scale = place(profile).scale
    return Profile(*(column / scale for column in profile))
