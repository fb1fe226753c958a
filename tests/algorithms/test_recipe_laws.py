"""Laws of every recipe at the token statistics: what must never decide over an update.

One token that has moved out of reach, the verdict of a verifier that failed, and the
rounding by which sampler and learner differ.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from algorithm_cases import BY_FAMILY
from recipe_step import STATISTICS, logp_of, stepped, with_logp

from rljax import numerics

FAR = (100.0, -100.0, 1e4, -1e4, 1e18)
N = len(FAR)  # changes that are mapped over, of every law: see `stepped`


@pytest.mark.parametrize("name", BY_FAMILY)
def test_one_far_token_leaves_loss_and_gradient_finite(name):
    # Its group may be clipped, bounded, dropped, or of advantage 0: 0 * inf is NaN.
    # The first and last rows of all groups, so that every source and sign is among it.
    rows, over = stepped(name)
    at = jnp.zeros(rows.samples.mask.shape).at[:, (0, -1), 0].set(1.0)

    def change(rows, which, by):
        for i, statistic in enumerate(STATISTICS):
            logp = logp_of(rows, statistic) - jnp.where(which == i, by, 0.0) * at
            rows = with_logp(rows, statistic, logp)
        return rows

    for which in range(len(STATISTICS)):
        loss, pull, state, _ = over(change, jnp.full(N, which), jnp.asarray(FAR))
        chex.assert_tree_all_finite((loss, pull, state))


@pytest.mark.parametrize("name", BY_FAMILY)
def test_the_verdict_of_a_failed_row_is_never_read(name):
    # dr_grpo, fade, maxrl and others refused the whole update: weight 0 times NaN.
    rows, over = stepped(name)
    failed = jnp.zeros(rows.verdict.failed.shape, bool).at[1:, 1].set(True)

    def change(rows, reward, correct):
        verdict = rows.verdict
        verdict = verdict.replace(
            failed=failed,
            reward=jnp.where(failed, reward, verdict.reward),
            correct=jnp.where(failed, correct, verdict.correct),
        )
        return rows.replace(verdict=verdict)

    said = jnp.array([0.0, jnp.nan, jnp.inf, -1e38, 1.0])
    correct = jnp.array([False, True, True, False, True])
    out = over(change, said, correct)
    chex.assert_tree_all_finite(out[:2])
    for i in range(1, len(said)):
        first, other = (jax.tree.map(lambda x, j=j: x[j], out) for j in (0, i))
        chex.assert_trees_all_equal(first, other)


@pytest.mark.parametrize("name", BY_FAMILY)
def test_rounding_between_sampler_and_learner_does_not_change_the_first_gradient(name):
    # On-policy all log-ratios are 0 up to 1e-5 nats; |log rho| has slope +-1 there, so
    # kl_cov's gradient changed by 3 to 43 %. A mean of noise is no signal either.
    rows, over = stepped(name)
    draw = np.random.default_rng(2)
    scale = jnp.asarray([0.0, 1e-6, 2.4e-6, 5e-6, 1e-5])
    shape = (len(STATISTICS), *rows.samples.mask.shape)
    noise = jnp.asarray(draw.uniform(-1, 1, shape), jnp.float32)

    def change(rows, size):
        for i, statistic in enumerate(STATISTICS):
            logp = rows.current.logp + size * noise[i]
            rows = with_logp(rows, statistic, logp)
        return rows

    _, pull, _, _ = over(change, scale)
    exact, *noisy = np.asarray(pull.logp, np.float64)
    assert np.linalg.norm(exact) > 0
    for other in noisy:
        assert np.linalg.norm(other - exact) < 1e-3 * np.linalg.norm(exact)


def test_ratios_are_exact_up_to_twenty_nats_and_constant_beyond():
    d = jnp.array([-1e4, -30.0, -1.0, 0.0, 1e-5, 19.99, 20.0, 20.01, 1e4, jnp.inf])

    def ratio(x):
        return jnp.exp(numerics.bounded(x))

    value, slope = jax.vmap(jax.value_and_grad(ratio))(d)
    near = d <= 20
    np.testing.assert_array_equal(value[near], jnp.exp(d)[near])
    np.testing.assert_array_equal(slope[near], jnp.exp(d)[near])
    np.testing.assert_array_equal(value[~near], jnp.exp(jnp.float32(20)))
    np.testing.assert_array_equal(slope[~near], 0)
    assert jnp.isnan(ratio(jnp.nan))  # a policy of NaN must show
