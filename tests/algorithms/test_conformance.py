"""Numbers of peers' own tests that belong to no single module, by convention.

Those that do stand with their modules, marked with path and convention: baselines in
test_baseline.py and test_scale.py, reductions in test_reduction.py, ratios in
test_ratio.py and test_surrogate.py, divergences in test_kl.py, GAE and returns in
test_gae.py, token filters in test_token_filter.py, lengths in test_shaping.py, adaptive
KL in test_coefficient.py. What can be installed is compared live: test_live_trl.py,
test_live_trl_parts.py, test_live_rlax.py.
"""

import fakes
import jax
import jax.numpy as jnp
import laws
import numpy as np
import pytest
from token_case import case, loss_of

from rljax import advantage as adv
from rljax import loss

pytestmark = pytest.mark.usefixtures("strict")


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def against(loss_fn, logp, reference, mask, *weighting):
    """A penalty's loss over one row."""
    rows = case(0.0, logp=[logp], mask=[mask])
    stats = rows.rollout.reference.replace(
        logp=jnp.asarray(reference, jnp.float32)[None, None]
    )
    rows = rows._replace(rollout=rows.rollout.replace(reference=stats))
    return loss_of(rows, loss_fn, adv.chain(*weighting))[0]


@pytest.mark.parametrize(
    ("loss_fn", "want"),
    [
        (loss.kl_k1(), 0.0875),
        (loss.kl_k2(), 0.018125),
        (loss.kl_k3(), 0.01565768),
        (loss.kl_k3_straight_through(), 0.01565768),
    ],
)
def test_marins_penalty_is_a_quarter_of_the_token_mean(loss_fn, want):
    # marin tests/rl/test_loss.py: coefficient .25 on the token mean.
    weighting = adv.token_mean(), adv.scale_weight(0.25)
    close(against(loss_fn, [-0.2, -0.1], [-0.4, -0.6], [1, 1], *weighting), want)


@pytest.mark.parametrize(
    ("loss_fn", "want"),
    [
        (loss.kl_k1(), 0.1),
        (loss.kl_absolute(), 0.1),
        (loss.kl_k2(), 0.005),
        (loss.kl_k3(), 0.00483742),
    ],
)
@pytest.mark.parametrize("outside", [0.4, np.nan])
def test_skyrls_divergences_do_not_read_what_is_masked(loss_fn, want, outside):
    # SkyRL tests/backends/skyrl_train/utils/test_ppo_utils.py: logp .2, .3, .5 against
    # .1, .2 and a masked token; .1 at both others, divided by both.
    logp, reference = [0.2, 0.3, 0.5], [0.1, 0.2, outside]
    close(against(loss_fn, logp, reference, [1, 1, 0], adv.token_mean()), want)


@pytest.mark.parametrize(
    ("loss_fn", "want"),
    [
        (
            loss.kl_k1(),
            [
                [0.38486493, 0.7469206, 0.3495195, 0.5621129],
                [-0.4474684, -0.13095665, 0.46064317, -0.19887352],
                [0.43108296, 0.53564644, -0.25296474, 0.44137287],
                [-0.06834459, -0.12115264, -0.61533415, 0.15468943],
            ],
        ),
        (
            loss.kl_k2(),
            [
                [0.07406051, 0.27894518, 0.06108194, 0.15798548],
                [0.10011399, 0.00857482, 0.10609607, 0.01977534],
                [0.09291626, 0.14345856, 0.03199558, 0.09740501],
                [0.00233549, 0.00733898, 0.18931806, 0.01196441],
            ],
        ),
        (
            loss.kl_k3(),
            [
                [0.0654075, 0.220744, 0.0545462, 0.1321163],
                [0.1168784, 0.0089617, 0.0915209, 0.0211542],
                [0.080888, 0.1209372, 0.0348731, 0.0845257],
                [0.0023897, 0.0076445, 0.2349406, 0.0113707],
            ],
        ),
    ],
    ids=["kl", "mse_kl", "low_var_kl"],
)
def test_tunixs_divergences(loss_fn, want):
    # tunix tests/rl/common_test.py, per token; its "log-probabilities" are uniform.
    with jax.threefry_partitionable(False):
        keys = jax.random.split(jax.random.PRNGKey(0))
        logp, reference = (jax.random.uniform(k, (1, 4, 4)) for k in keys)
    rows = fakes.rollout(1, 4, 4)
    rows = rows.replace(reference=rows.reference.replace(logp=reference))
    close(loss_fn(rows.old.replace(logp=logp), None, rows)[0], np.array(want))


@pytest.mark.parametrize(
    ("weighting", "want"),
    [
        ((adv.token_mean(),), 0.15),
        # Weight .1 per token over a normaliser of 1.
        ((adv.constant_length(1), adv.scale_weight(0.1)), 0.03),
    ],
)
def test_prime_rls_cross_entropy_component(weighting, want):
    # prime-rl tests/unit/train/rl/test_loss.py.
    rows = case(0.0, logp=[[-0.1, -0.5, -0.2]], mask=[[1, 0, 1]])
    close(loss_of(rows, loss.nll(), adv.chain(*weighting))[0], want)


def test_torchforges_single_token():
    # torchforge tests/unit_tests/losses/test_grpo_loss.py: ratio 1, A = 1.
    value, coefficient = loss_of(case(1.0), loss.ppo_clip())
    close(value, -1.0)
    close(coefficient, [[1.0]])


@pytest.mark.parametrize(
    ("transform", "want"),
    [
        (adv.center_by_leave_one_out(), [[3, -3], [-3, 3], [0, 0]]),
        (adv.center_by_group(), [[1.5, -1.5], [-1.5, 1.5], [0, 0]]),
        (
            adv.chain(adv.center_by_group(), adv.scale_by_group_std(ddof=1)),
            [[0.707107, -0.707107], [-0.707107, 0.707107], [0, 0]],
        ),
    ],
    ids=["rloo", "dr_grpo", "grpo"],
)
def test_groups_of_two_and_of_one(transform, want):
    # SkyRL test_ppo_utils.py: groups (6, 3), (9, 12), (1). A group is an axis here, so
    # the third is short: its second row has no token. prime-rl
    # tests/unit/orchestrator/test_advantage.py: GRPO of a single rollout is 0, not NaN.
    length = np.array([[1, 1], [1, 1], [1, 0]])
    reward = np.array([[6, 3], [9, 12], [1, 77.0]])
    rows = fakes.rollout(3, 2, 1, reward=reward, length=length)
    credit, _ = laws.apply(transform, rows)
    got = np.where(credit.member[..., 0], credit.advantage[..., 0], 0)
    close(got, want)
