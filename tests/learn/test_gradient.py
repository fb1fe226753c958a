"""The gradient of one step: that of the whole loss, in any number of microbatches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from update_cases import (
    DECODER,
    PARAMS,
    ROLLOUT,
    TABLE,
    fade,
    gradient,
    grpo_with_kl_and_entropy,
    off_policy,
    parameters,
    quantile,
    uncertain_tokens,
)

from rljax import advantage as adv
from rljax import loss
from rljax.advantage import Term, algorithm, chain
from rljax.learn import origin
from rljax.types import Missing, NotMeasured


@pytest.mark.parametrize(
    "method",
    [fade(), grpo_with_kl_and_entropy(), quantile()],
    ids=["fade", "grpo", "q"],
)
def test_microbatches_add_up(method):
    # Weighing each microbatch alone would average four quantiles and four divisors.
    want = gradient(TABLE, method, 1, ROLLOUT, PARAMS)
    for num_micro in (2, 8):
        got = gradient(TABLE, method, num_micro, ROLLOUT, PARAMS)
        chex.assert_trees_all_close(got, want, atol=1e-6)


def test_microbatches_of_a_decoder_add_up():
    # Here all prompts share all parameters.
    params = parameters(DECODER)
    rollout = off_policy(DECODER, params)
    method = quantile()
    want = gradient(DECODER, method, 1, rollout, params)
    assert float(optax.tree.norm(want[0])) > 0.1
    got = gradient(DECODER, method, 8, rollout, params)
    chex.assert_trees_all_close(got, want, atol=2e-6, rtol=1e-5)


# The gradient against a loss written down in one piece.


def naive(params, rollout, policy_loss):
    now = TABLE.measure(params, rollout.prompts, rollout.samples)
    ratio = jnp.exp(now.logp - rollout.old.logp)
    reward = rollout.verdict.reward
    centred = (reward - reward.mean(1, keepdims=True))[..., None]
    mask = rollout.samples.mask.astype(jnp.float32)
    return policy_loss(now, ratio, centred, mask, rollout)


def naive_grpo(now, ratio, centred, mask, rollout):
    std = jnp.sqrt(jnp.mean(centred**2, 1, keepdims=True))
    a = jnp.where(std > 0, centred / jnp.where(std > 0, std, 1), 0)
    clipped = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.28) * a)
    policy = jnp.mean(jnp.sum(clipped * mask, -1) / jnp.sum(mask, -1))
    d = rollout.reference.logp - now.logp
    kl = jnp.sum((jnp.exp(d) - 1 - d) * mask) / jnp.sum(mask)
    entropy = jnp.sum(now.entropy * mask) / (8 * 2 * 4)
    return policy + 0.1 * kl - 0.05 * entropy


def naive_quantile(now, ratio, centred, mask, rollout):
    clipped = -jnp.minimum(ratio * centred, jnp.clip(ratio, 0.8, 1.2) * centred)
    entropy = np.asarray(now.entropy)[np.asarray(mask, bool)]
    keep = mask * (now.entropy >= np.quantile(entropy, 0.6))
    return jnp.sum(clipped * keep) / jnp.sum(keep)


@pytest.mark.parametrize(
    ("method", "policy_loss"),
    [(grpo_with_kl_and_entropy(), naive_grpo), (quantile(), naive_quantile)],
    ids=["grpo", "quantile"],
)
def test_the_gradient_is_that_of_the_naive_loss(method, policy_loss):
    if policy_loss is naive_quantile:  # its weights are constants of the loss
        now = TABLE.measure(PARAMS, ROLLOUT.prompts, ROLLOUT.samples)
        entropy = now.entropy

        def fixed(now, *rest):
            return naive_quantile(now.replace(entropy=entropy), *rest)

        policy_loss = fixed
    value, want = jax.value_and_grad(naive)(PARAMS, ROLLOUT, policy_loss)
    grads, _, metrics = gradient(TABLE, method, 2, ROLLOUT, PARAMS)
    chex.assert_trees_all_close(grads, want, atol=1e-6)
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-6)


def test_the_first_step_takes_current_from_old_and_later_ones_measure_it():
    known = ROLLOUT.replace(origin=origin.of(PARAMS, ROLLOUT.old))
    later = gradient(TABLE, quantile(), 2, known, PARAMS, first=False)
    first = gradient(TABLE, quantile(), 2, known, PARAMS, first=True)
    by_old = gradient(TABLE, quantile("old"), 2, known, PARAMS)
    chex.assert_trees_all_close(first[1], by_old[1], atol=1e-6)
    assert float(jnp.max(jnp.abs(first[1] - later[1]))) > 0.01


def test_without_old_current_is_measured_at_every_step():
    method = algorithm(
        sft=Term(
            weighting=chain(uncertain_tokens(0.4), adv.token_mean()), loss_fn=loss.nll()
        )
    )
    bare = ROLLOUT.replace(old=Missing("old", "a sampler supplies it"))
    want = gradient(TABLE, method, 1, bare, PARAMS, first=True)
    chex.assert_trees_all_close(
        gradient(TABLE, method, 2, bare, PARAMS, first=True), want, atol=1e-6
    )


def test_only_a_weighting_that_reads_current_costs_another_forward():
    def forwards(method):
        traced = []

        def measure(*args):
            traced.append(1)
            return TABLE.measure(*args)

        gradient(TABLE._replace(measure=measure), method, 2, ROLLOUT, PARAMS)
        return len(traced)

    assert forwards(quantile()) > forwards(quantile("old")) == forwards(fade())


def test_what_lies_outside_the_mask_may_be_nan():
    want = gradient(TABLE, fade(), 2, ROLLOUT, PARAMS)
    logp = jnp.where(ROLLOUT.samples.mask, ROLLOUT.old.logp, jnp.nan)
    holes = ROLLOUT.replace(old=ROLLOUT.old.replace(logp=logp))
    chex.assert_trees_all_close(
        gradient(TABLE, fade(), 2, holes, PARAMS), want, atol=1e-6
    )


def test_a_statistic_nobody_measures_is_named_when_traced():
    bare = ROLLOUT.replace(reference=Missing("reference", "start with a reference"))
    with pytest.raises(NotMeasured, match="start with a reference"):
        gradient(TABLE, grpo_with_kl_and_entropy(), 1, bare, PARAMS)
