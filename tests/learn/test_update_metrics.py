"""What the update reports of its steps."""

import chex
import fakes
import jax
import jax.numpy as jnp
import optax
import pytest
from update_cases import PARAMS, ROLLOUT, TABLE, fade, learner, quantile

from rljax import advantage as adv
from rljax import loss
from rljax.advantage import Term, algorithm

METRICS = {
    "gap/sampler_learner_far_share",
    "gap/sampler_learner_max",
    "gap/sampler_learner_mean",
    "mass/clipped_share",
    "mass/difficulty",
    "mass/effective_groups",
    "mass/log_ratio",
    "mass/negative",
    "mass/positive",
    "mass/zero_share",
    "policy/alpha",
    "policy/delta",
    "policy/entropy_nats",
    "policy/fault/reward_out_of_range",
    "policy/h_ema",
    "policy/kl_old_nats",
    "policy/p_ema",
    "update/gradient_norm",
    "update/loss",
    "update/moved_share",
    "update/refused",
    "update/refused_in_row",
    "update/steps",
}


@pytest.mark.parametrize(
    "options", [{}, {"num_passes": 2, "num_minibatches": 2, "num_microbatches": 2}]
)
def test_metrics_are_complete_float32_scalars(options):
    state, learn = learner(fade(), **options)
    _, metrics = jax.eval_shape(learn, state, ROLLOUT)
    assert set(metrics) == METRICS
    assert {(m.shape, m.dtype.name) for m in jax.tree.leaves(metrics)} == {
        ((), "float32")
    }


def test_the_gap_is_taken_before_the_first_step_only():
    # Later the policy has moved: that is learning, not a mismatch.
    now = jax.jit(TABLE.measure)(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
    on_policy = ROLLOUT.replace(old=now.replace(logp=now.logp + 0.125))
    state, learn = learner(fade(), optax.sgd(10.0), num_passes=3)
    _, metrics = learn(state, on_policy)
    assert float(metrics["gap/sampler_learner_max"].value) == pytest.approx(
        0.125, abs=1e-5
    )
    assert float(metrics["gap/sampler_learner_far_share"].value) == 1


def test_the_share_of_far_tokens_is_one_of_tokens_in_the_mask():
    # 3 tokens of 8 prompts x 2 x 4 are 0.2 nats off, one more outside the mask.
    now = jax.jit(TABLE.measure)(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
    mask = jnp.ones_like(ROLLOUT.samples.mask).at[0, 0, 3].set(False)
    off = jnp.zeros(mask.shape).at[0, 0].set(0.2).at[1, 1, 1].set(-0.09)
    rows = ROLLOUT.replace(
        samples=ROLLOUT.samples.replace(mask=mask),
        old=now.replace(logp=now.logp + off),
    )
    state, learn = learner(fade())
    _, metrics = learn(state, rows)
    share = float(metrics["gap/sampler_learner_far_share"].value)
    assert share == pytest.approx(3 / 63, abs=1e-6)


def test_masses_are_those_of_the_coefficients():
    # On-policy, one token per row: m_S = m_F = mean of p q over groups; clipping none.
    rows = fakes.solved(2, 1, 1, 1, 0, 2, 1, 1, 0).replace(prompts=fakes.prompts(8))
    rows = rows.replace(old=jax.jit(TABLE.measure)(PARAMS, rows.prompts, rows.samples))
    term = Term(
        advantage=adv.center_by_group(),
        weighting=adv.token_mean(),
        loss_fn=loss.ppo_clip(),
    )
    state, learn = learner(algorithm(policy=term))
    _, metrics = learn(state, rows)
    want = {
        "positive": 5 / 8 / 4,
        "negative": 5 / 8 / 4,
        "log_ratio": 0.0,
        "difficulty": 0.5,
        "effective_groups": 5.0,
        "zero_share": 3 / 8,
        "clipped_share": 0.0,
    }
    got = {k: metrics[f"mass/{k}"] for k in want}
    chex.assert_trees_all_close(got, want, atol=1e-5)


def test_the_clipped_share_counts_pushed_tokens_without_coefficient():
    # All ratios 2: successes (half of the tokens with an advantage) are clipped.
    rows = fakes.solved(2, *[1] * 7, 0).replace(prompts=fakes.prompts(8))
    now = jax.jit(TABLE.measure)(PARAMS, rows.prompts, rows.samples)
    rows = rows.replace(old=now.replace(logp=now.logp - jnp.log(2.0)))
    state, learn = learner(fade())
    assert float(learn(state, rows)[1]["mass/clipped_share"]) == 0.5


def test_what_the_weighting_drops_is_not_clipped():
    # On-policy nothing clips; the six tokens of ten that are dropped are not pushed.
    now = jax.jit(TABLE.measure)(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
    for num_micro in (1, 2):
        state, learn = learner(quantile(), num_microbatches=num_micro)
        _, metrics = learn(state, ROLLOUT.replace(old=now))
        assert metrics["mass/clipped_share"] == 0
