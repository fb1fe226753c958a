"""One solve rate everywhere: of a group's members, failed verifications left out."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss, program
from rljax.advantage import baseline, solve_rate
from rljax.learn import update
from rljax.learn.dynamic_sampling import dynamic_sampling

# [right, right, failed, failed], [right, wrong, failed, failed], all failed, all wrong:
# if failures counted as wrong answers the first would be mixed, too.
RIGHT = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
FAILED = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]) > 0
RATES = [1.0, 0.5, 0.0, 0.0]
MIXED = [False, True, False, False]


def batch(claimed=False):
    """The groups; `claimed` is what the failed verifier says of its rows."""
    rows = fakes.rollout(4, 4, 3, reward=RIGHT)
    verdict = rows.verdict.replace(
        failed=jnp.asarray(FAILED),
        correct=rows.verdict.correct | (claimed & jnp.asarray(FAILED)),
        reward=jnp.where(FAILED, jnp.nan if claimed else 0.0, rows.verdict.reward),
    )
    return rows.replace(verdict=verdict)


@pytest.mark.parametrize("claimed", [False, True])
def test_the_rate_is_of_verified_samples(claimed):
    for group in (
        solve_rate.by_correct(batch(claimed)),
        solve_rate.by_reward(batch(claimed)),
    ):
        np.testing.assert_array_equal(group.p[:, 0, 0], RATES)
        np.testing.assert_array_equal(group.n[:, 0, 0], [2, 2, 0, 4])
        np.testing.assert_array_equal(group.mixed[:, 0, 0], MIXED)


def test_rows_without_tokens_are_no_members():
    rows = batch()
    mask = rows.samples.mask.at[1, 1].set(False)  # the only wrong one
    rows = rows.replace(samples=rows.samples.replace(mask=mask))
    np.testing.assert_array_equal(solve_rate.by_correct(rows).p[:, 0, 0], [1, 1, 0, 0])


@pytest.mark.parametrize("claimed", [False, True])
def test_filters_agree_with_it(claimed):
    rows = batch(claimed)
    for keep in (
        adv.drop_equal_groups(),
        adv.keep_prompts(lambda solved: solved == 1),
    ):
        credit, _ = keep.update(adv.initial_credit(rows), rows, ())
        kept = jnp.any(credit.weight > 0, (1, 2))
        np.testing.assert_array_equal(kept, MIXED)
    equal = baseline.equal_groups(adv.initial_credit(rows))[:, 0, 0]
    np.testing.assert_array_equal(~equal, MIXED)


@pytest.mark.parametrize("claimed", [False, True])
def test_metrics_of_a_rollout_agree_with_it(claimed):
    metrics = program.rollout_metrics(batch(claimed))
    # Over the three groups with a verified sample: 1, 1/2 and 0; failures counted as
    # wrong answers would give (1/2 + 1/4) / 4.
    assert float(metrics["reward/solved"]) == 0.5
    assert float(metrics["reward/mixed_share"]) == 0.25
    assert float(metrics["reward/mean"]) == pytest.approx(3 / 8)
    assert float(metrics["verify/failed"].value) == 8


POLICY = fakes.bandit(4, 3, 16)
TERM = adv.Term(
    advantage=adv.center_by_group(),
    weighting=adv.token_mean(),
    loss_fn=loss.reinforce(),
)
LEARNER = update.learner(POLICY.measure, adv.algorithm(policy=TERM), optax.sgd(1.0))


def test_masses_are_weighed_by_it():
    rows = batch()
    state = LEARNER.init(POLICY.init(None), jax.random.key(0))
    _, metrics = jax.jit(LEARNER.learn)(state, rows)
    # Only the mixed group has mass, and its rate is 1/2, not 1/4.
    assert float(metrics["mass/difficulty"]) == pytest.approx(0.5)


def test_dynamic_sampling_keeps_no_group_that_weighs_nothing():
    rows = batch()
    learner = dynamic_sampling(LEARNER, 2)
    state = learner.init(POLICY.init(None), jax.random.key(0))
    after, metrics = jax.jit(learner.learn)(state, rows)
    # One of four is mixed, and the two kept begin with it: with [right, right, failed,
    # failed] taken for mixed the share was 1.
    assert float(metrics["samples/mixed_kept"]) == 0.5
    first = jax.tree.map(lambda x: x[jnp.array([1, 0])], rows)
    want, _ = jax.jit(LEARNER.learn)(state, first)
    chex.assert_trees_all_close(after.params, want.params, atol=1e-6)
