"""Reductions against published numbers; every share is a share of a mean."""

import chex
import fakes
import jax.numpy as jnp
import laws
import numpy as np
import pytest

from rljax import advantage as adv
from rljax.advantage import chain, stateless

pytestmark = pytest.mark.usefixtures("strict")


def reduced(reduction, loss, mask):
    """The reduced loss of a [B, T] matrix, one prompt with B samples."""
    mask, loss = np.asarray(mask, bool), jnp.asarray(loss, jnp.float32)
    rows = fakes.rollout(1, *mask.shape, reward=np.ones((1, len(mask))))
    rows = rows.replace(samples=rows.samples.replace(mask=jnp.asarray(mask)[None]))
    credit, _ = laws.apply(reduction, rows)
    assert credit.reduced
    return float(jnp.sum(credit.weight[0] * loss))


LENGTHS_2_AND_4 = [[1, 1, 0, 0], [1, 1, 1, 1]]


PPO_LOSS = [[-1.0] * 4, [1.0] * 4]


SKYRL = [[1.0, 2, 3], [4, 5, 6]]


LEGACY = [[2.0, 4], [6, 8], [10, 12], [14, 16]]


LEGACY_MASK = [[1, 1], [1, 0], [1, 1], [1, 1]]


TUNIX = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize(
    ("reduction", "loss", "mask", "want"),
    [
        # A = (1, -1), ratio 1, lengths 2 and 4: (-2 + 4) / 6, (-1 + 1) / 2, and
        # (-2 + 4) / (2 * 8).
        (adv.token_mean(), PPO_LOSS, LENGTHS_2_AND_4, 0.333333),
        (adv.sequence_mean(), PPO_LOSS, LENGTHS_2_AND_4, 0.0),
        (adv.constant_length(8), PPO_LOSS, LENGTHS_2_AND_4, 0.125),
        # tunix tests/rl/common_test.py: (.1 + .2 + .4 + .5 + .6) / 5 and so on.
        (adv.token_mean(), *TUNIX, 0.36),
        (adv.sequence_mean(), *TUNIX, 0.325),
        (adv.constant_length(3), *TUNIX, 0.3),
        # Its seq-mean-token-sum, and sum-norm with divisors 2 (the rows) and 4.
        (adv.constant_length(1), *TUNIX, 0.9),
        (adv.constant_length(2), *TUNIX, 0.45),
        # tunix tests/rl/algo_core_test.py: -1.5 on three tokens, -3 on one.
        (
            adv.sequence_mean(),
            [[-1.5] * 3, [-3.0] * 3],
            [[1, 1, 1], [1, 0, 0]],
            -2.25,
        ),
        # SkyRL tests/backends/skyrl_train/utils/test_ppo_utils.py.
        (adv.token_mean(), SKYRL, [[1, 1, 0], [1, 1, 1]], 3.6),
        (adv.sequence_mean(), [[1.0, 2], [3, 4]], [[1, 1], [1, 0]], 2.25),
        (adv.constant_length(10), [[2.0, 3], [9, 12]], [[1, 1], [1, 0]], 0.7),
        # Its token_mean_legacy is 8.5, the mean of two microbatches' means 4 and 13;
        # here microbatches are no part of a reduction: 64 / 7.
        (adv.token_mean(), LEGACY[:2], LEGACY_MASK[:2], 4.0),
        (adv.token_mean(), LEGACY[2:], LEGACY_MASK[2:], 13.0),
        (adv.token_mean(), LEGACY, LEGACY_MASK, 9.142857),
        # A row without tokens: no part of a sequence mean, a row of a constant length.
        (adv.sequence_mean(), [[2.0, 2], [9, 9]], [[1, 1], [0, 0]], 2.0),
        (adv.constant_length(2), [[2.0, 2], [9, 9]], [[1, 1], [0, 0]], 1.0),
    ],
)
def test_published_numbers(reduction, loss, mask, want):
    assert reduced(reduction, loss, mask) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    "reduction", [adv.token_mean(), adv.sequence_mean()], ids=["token", "sequence"]
)
def test_means_have_shares_that_sum_to_one(reduction):
    credit, _ = laws.apply(reduction, fakes.rollout())
    assert float(jnp.sum(credit.weight)) == pytest.approx(1.0, abs=1e-6)


def test_an_empty_minibatch_weighs_nothing():
    for reduction in (adv.token_mean(), adv.sequence_mean(), adv.constant_length(4)):
        assert reduced(reduction, [[1.0, 1]], [[0, 0]]) == 0


def test_a_token_weight_enters_the_mean_as_a_weight():
    # Weights 3 and 1 on losses 1 and 5: (3 + 5) / 4 = 2, not (3 + 5) / 2.
    weigh = stateless(lambda c, r: c.replace(weight=c.weight * jnp.array([[[3.0, 1]]])))
    assert reduced(chain(weigh, adv.token_mean()), [[1.0, 5]], [[1, 1]]) == 2


def test_a_coefficient_after_the_reduction_scales_the_term():
    loss = [[1.0, 5]], [[1, 1]]
    assert reduced(chain(adv.token_mean(), adv.scale_weight(0.1)), *loss) == (
        pytest.approx(0.3)
    )
    # Before it, the mean divides it out again.
    assert reduced(chain(adv.scale_weight(0.1), adv.token_mean()), *loss) == (
        pytest.approx(3.0)
    )


def test_the_constant_must_be_positive():
    with pytest.raises(ValueError, match="num_tokens must lie in"):
        adv.constant_length(0)


def test_a_second_reduction_is_refused_by_name():
    rows = fakes.rollout()
    with pytest.raises(ValueError, match=r"sequence_mean\(\) needs weights that no"):
        laws.apply(chain(adv.token_mean(), adv.sequence_mean()), rows)


def test_dropping_verifier_failures_renormalises():
    # Of two rows with one token each the failed one leaves: the other weighs 1.
    rows = fakes.rewards([1, 0])
    failed = jnp.array([[False, True]])
    rows = rows.replace(verdict=rows.verdict.replace(failed=failed))
    credit, _ = laws.apply(adv.token_mean(), rows)
    chex.assert_trees_all_equal(credit.weight[0, :, 0], jnp.array([1.0, 0.0]))


def test_a_prompt_mean_gives_every_prompt_the_same_share():
    # Two prompts of 3 and 6 tokens, a third filtered out: shares 1 / (2 * 3) and
    # 1 / (2 * 6) per token, where a token mean gives 1 / 9 to all.
    rows = fakes.rollout(3, 2, 4, length=[[1, 2], [2, 4], [3, 3]])
    dropped = stateless(
        lambda c, r: c.replace(weight=c.weight.at[2].set(0.0)),
    )
    credit, _ = laws.apply(chain(dropped, adv.prompt_mean()), rows)
    mask = rows.samples.mask
    want = jnp.where(mask, jnp.array([1 / 6, 1 / 12, 0.0])[:, None, None], 0.0)
    chex.assert_trees_all_close(credit.weight, want, atol=1e-7)


@pytest.mark.parametrize(
    "reduction",
    [
        laws.MIXED_TRANSFORMS["constant_sum"],
        laws.MIXED_TRANSFORMS["weighted_sequence_mean"],
    ],
)
def test_a_second_reduction_is_refused(reduction):
    twice = adv.chain(adv.token_mean(), reduction)
    with pytest.raises(ValueError, match="exactly one reduction"):
        twice.update(
            adv.initial_credit(laws.mixed_rollout()), laws.mixed_rollout(), twice.init()
        )
