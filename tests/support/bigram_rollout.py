"""A rollout with all that any algorithm reads, measured by the bigram policy."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
from algorithm_cases import OWN, Case, G

from rljax.types import Rollout

P, T = 16, 8
PARAMS, REFERENCE, TEACHER = (fakes.bigram_params(seed=seed) for seed in range(3))


def rollout(case: Case) -> Rollout:
    """Samples whose sampler differs from the learner, of the sources the case needs."""
    right = np.arange(G) < (np.arange(P) % (G + 1))[:, None]  # none to all of a group
    rows = fakes.rollout(P, G, T, reward=right)
    sources = case.others * G if case.only else (OWN,) * G
    sources = (*sources[: G - len(case.others)], *case.others)
    samples = rows.samples.replace(source=jnp.tile(jnp.asarray(sources), (P, 1)))
    draw = np.random.default_rng(1)
    far = 0.4 * np.arange(G)[:, None] / G  # the first rows pass the strictest tests

    def measured(params):
        return jax.jit(fakes.bigram_measure)(params, rows.prompts, samples, REFERENCE)

    def near():
        now = measured(PARAMS)
        noise = jax.tree.map(lambda x: far * draw.normal(0, 1, x.shape), now)
        return jax.tree.map(lambda x, d: x + jnp.asarray(d, x.dtype), now, noise)

    return Rollout(
        prompts=rows.prompts.replace(data=fakes.stored_last(samples)),
        samples=samples.replace(behaviour=near()),
        verdict=rows.verdict,
        old=measured(PARAMS),
        reference=measured(REFERENCE),
        teacher=measured(TEACHER),
    )
