"""Whole algorithms beside TRL's own trainers, live: loss and gradients of one batch.

Batches have completions of unequal lengths, holes, ratios beyond every bound, a group
of equal rewards. Rewards are hundreds: there the epsilons of standard deviations, 1e-4
in TRL and 1e-6 in verl and most recipes, do not show; they have tests of their own.
"""

import fakes
import jax
import jax.numpy as jnp
import live_trl
import numpy as np
import pytest

from rljax import advantage as adv
from rljax import algorithms, loss, numerics
from rljax.advantage import importance, token_filter

pytestmark = pytest.mark.slow

P, G, T = 4, 5, 9


def rollout(seed=0):
    """Statistics near each other: ratios between 0.3 and 3."""
    draw = np.random.default_rng(seed)
    length = draw.integers(2, T + 1, (P, G))
    length[0, 0] = T  # TRL pads to the longest
    reward = draw.normal(0, 500, (P, G))
    reward[1] = 300.0
    rows = fakes.rollout(P, G, T, reward=reward, length=length, seed=seed)
    mask = np.array(rows.samples.mask) & (draw.random((P, G, T)) > 0.2)
    np.put_along_axis(mask, length[..., None] - 1, True, -1)  # a hole ends no row

    def near(stats, scale):
        noise = draw.normal(0, scale, (P, G, T)).astype(np.float32)
        return stats.replace(logp=stats.logp + noise)

    old = near(rows.current, 0.4)
    drawn = near(old, 0.2)
    samples = rows.samples.replace(mask=jnp.asarray(mask), behaviour=drawn)
    return rows.replace(samples=samples, old=old, reference=near(rows.current, 0.3))


ROWS = rollout()


def policy(loss_fn, *weighting):
    """A policy term of group-normalised advantages."""
    return adv.Term(
        advantage=adv.normalise_by_group(),
        weighting=adv.chain(*weighting),
        loss_fn=loss_fn,
    )


def one(loss_fn, *weighting):
    return adv.algorithm(policy=policy(loss_fn, *weighting))


# What rljax has no name for, as its user would write it.


def drop_stale(threshold):
    """Weight 0 for bad rows far from what they were drawn from (DeepSeek-V3.2)."""

    def apply(credit, rollout):
        gap = rollout.samples.behaviour.logp - rollout.current.logp
        far = numerics.masked_mean(gap, rollout.samples.mask, -1, True) > threshold
        stale = far & (credit.advantage < 0)
        return credit.replace(weight=jnp.where(stale, 0.0, credit.weight))

    return adv.stateless(apply)


def vespo(now, credit, rollout):
    """-phi(w) A log pi, phi = w^k e^(lambda (1 - w)), w the ratio of the whole row."""
    d = jnp.where(rollout.samples.mask, loss.log_ratio(now, rollout), 0.0)
    d = jnp.sum(d, -1, keepdims=True)
    k = jnp.where(credit.advantage >= 0, 2.0, 3.0)
    rate = jnp.where(credit.advantage >= 0, 3.0, 2.0)
    phi = jnp.exp(rate + k * d - rate * jnp.exp(d))
    return -jax.lax.stop_gradient(phi) * credit.advantage * now.logp


PPO = loss.ppo_clip(0.2, 0.2)
SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": 0.1}
TIS = {"use_vllm": True, "vllm_importance_sampling_clip_max": 1.1}


# name: (TRL's settings, our algorithm); TRL's default is clip .2, loss "dapo": all
# tokens of the batch in one mean.
CASES = {
    "grpo": ({"loss_type": "grpo"}, algorithms.grpo(ddof=1)),
    "grpo_kl": (
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
        algorithms.grpo_kl(beta=0.3, ddof=1),
    ),
    "dr_grpo": (
        {
            "loss_type": "dr_grpo",
            "scale_rewards": "none",
            "max_completion_length": 12,
        },
        algorithms.dr_grpo(12),
    ),
    "bnpo": ({"loss_type": "bnpo"}, one(PPO, adv.token_mean())),
    "dapo_clip_higher": (
        {"epsilon_high": 0.28},
        one(loss.ppo_clip(0.2, 0.28), adv.token_mean()),
    ),
    # By default the ratio weighs the KL term, too, and is differentiated.
    "kl_times_ratio": (
        {"beta": 0.3},
        adv.algorithm(
            policy=policy(PPO, adv.token_mean()),
            kl=adv.Term(
                weighting=adv.chain(adv.token_mean(), adv.scale_weight(0.3)),
                loss_fn=loss.times_ratio(loss.kl_k3()),
            ),
        ),
    ),
    # TRL's delta caps the ratio before min(): PPO's dual clip.
    "delta": ({"delta": 1.5}, one(loss.dual_clip(0.2, 0.2, 1.5), adv.token_mean())),
    # epsilon_high is the cap itself.
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.3},
        algorithms.cispo(cap=1.3),
    ),
    "sapo": ({"loss_type": "sapo"}, algorithms.sapo()),
    "gspo": (
        SEQUENCE | {"loss_type": "grpo"},
        algorithms.gspo(low=0.1, high=0.1),
    ),
    "gspo_token": (
        SEQUENCE | {"loss_type": "grpo"},
        algorithms.gspo_token(low=0.1, high=0.1),
    ),
    # GSPO's ratio, rows weighed by their lengths.
    "luspo": (
        SEQUENCE | {"loss_type": "luspo"},
        one(loss.gspo(0.1, 0.1), adv.constant_length(1)),
    ),
    # The dropped stay in the divisor.
    "top_entropy": (
        {"top_entropy_quantile": 0.3},
        one(
            PPO,
            adv.token_mean(),
            adv.keep_top_entropy(0.3, token_filter.by_quantile),
        ),
    ),
    "entropy_bonus": (
        {"entropy_coef": 50.0},
        adv.algorithm(
            policy=policy(PPO, adv.token_mean()),
            entropy=adv.Term(
                weighting=adv.chain(adv.token_mean(), adv.scale_weight(50.0)),
                loss_fn=loss.entropy_bonus(),
            ),
        ),
    ),
    "token_truncate": (
        TIS | {"vllm_importance_sampling_mode": "token_truncate"},
        algorithms.tis(cap=1.1),
    ),
    "token_mask": (
        TIS
        | {
            "vllm_importance_sampling_mode": "token_mask",
            "vllm_importance_sampling_clip_min": 0.9,
        },
        algorithms.icepop(floor=0.9, cap=1.1),
    ),
    "sequence_truncate": (
        TIS | {"vllm_importance_sampling_mode": "sequence_truncate"},
        one(
            PPO,
            adv.token_mean(),
            adv.weigh_by_importance(importance.truncate(1.1), importance.per_sequence),
        ),
    ),
    "sequence_mask": (TIS, algorithms.sequence_mask(cap=1.1)),
    # Cut rows leave a mean over tokens, but stay in the divisor of a mean over rows.
    "truncated_of_tokens": (
        {"mask_truncated_completions": True},
        one(PPO, adv.drop_truncated(), adv.token_mean()),
    ),
    "truncated_of_rows": (
        {"mask_truncated_completions": True, "loss_type": "grpo"},
        one(PPO, adv.sequence_mean(), adv.drop_truncated()),
    ),
    "off_policy_mask": (
        {"off_policy_mask_threshold": 0.1},
        one(PPO, adv.token_mean(), drop_stale(0.1)),
    ),
    "vespo": ({"loss_type": "vespo"}, one(vespo, adv.token_mean())),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_trls(name):
    settings, algorithm = CASES[name]
    trainer = live_trl.grpo(ROWS, **settings)
    live_trl.same(live_trl.ours(algorithm, ROWS), live_trl.step(trainer))
    clips = ("clip_ratio/low_mean", "clip_ratio/high_mean", "cispo_clip_ratio")
    shares = [x for name in clips for x in trainer._metrics["train"][name]]
    assert all(0 < share < 1 for share in shares)  # the batch has ratios on both sides


def test_gmpo_is_trls():
    trainer = live_trl.gmpo(ROWS, epsilon=0.2, epsilon_high=0.3)
    got = live_trl.ours(algorithms.gmpo(low=0.2, high=0.3), ROWS)
    live_trl.same(got, live_trl.step(trainer))
