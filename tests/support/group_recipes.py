"""Every recipe that is a function of a group's rewards alone, and its table of masses.

Paper 01 (../shared/papers/01-fade.md, sections 3 and 6) has them with other numbers,
too: each entry is a recipe with numbers of its own.
"""

import functools
import math

import chex
import fakes
import jax
import jax.numpy as jnp
import laws

from rljax import advantage as adv
from rljax import algorithms as al
from rljax.advantage import chain, fade
from rljax.analysis import profile

apply = jax.jit(laws.apply, static_argnums=0)  # op by op it would compile for minutes

RECIPES = {
    "reinforce": al.reinforce(),
    "reinforce_baseline": al.reinforce(baseline=0.3),
    "reinforce_signed": al.reinforce_signed(),
    "psr": al.psr(),
    "nsr": al.nsr(),
    "w_reinforce": al.w_reinforce(),
    "raft": al.raft(),
    "dr_grpo": al.dr_grpo(8),
    "rloo": al.rloo(),
    "opo": al.opo(),
    "grpo": al.grpo(),
    "grpo_ddof_1": al.grpo(ddof=1),
    "l1": al.norm_grpo(1.0),
    "l2": al.norm_grpo(2.0),
    "l_inf": al.norm_grpo(math.inf),
    "maxrl": al.maxrl(),
    "linear_r": al.linear_r(),
    "sqrt_r": al.sqrt_r(),
    "log_failure": al.log_failure(),
    "log_odds": al.log_odds(),
    "power_1": al.power(1.0),
    "power_2": al.power(2.0),
    "power_3_peak": al.power(3.0, scale_fn=fade.peak_scale),
    "pass_at_4": al.pass_at_k(4),
    "f_grpo": al.f_grpo(0.5),
    "f_grpo_on_mean": al.f_grpo(1.0, base=adv.center_by_group()),
    "rs_grpo": al.rs_grpo(),
    "asym_grpo": al.asym_grpo(0.5),
    "gu": al.asym_grpo_by_odds(),
    "gu_half": al.asym_grpo_by_odds(success=0.5, failure=0.5),
    "gu_zero": al.asym_grpo_by_odds(success=0.0, failure=0.0),
    "power_asym": al.power_asym(2.0, 2.0),
    "power_asym_1": al.power_asym(1.0, 1.0),
    "qae": al.qae(),
    "qae_plain": al.qae(scale=chain()),
    "pkpo": al.pkpo(4),
    "pkpo_minus_one": al.pkpo_minus_one(4),
    "pkpo_leave_one_out": al.pkpo_leave_one_out(4),
    "pass_at_k_training": al.pass_at_k_training(4),
    "pass_at_group": al.pass_at_group(),
}


@functools.cache
def table(name, num_samples=8):
    """The advantages and masses of a recipe for each number of right answers."""
    return profile.analytic(profile.advantage_of(RECIPES[name]), num_samples)


@functools.partial(jax.jit, static_argnums=0)
def weights(method, rollout):
    """The credit of the method's only term, weighed."""
    credits, state, _ = method.credit(rollout, method.init())
    (credit,), _, _ = method.weigh(credits, rollout, state)
    return credit


def advantage(transform, *groups):
    """f32[P, G] from one list of rewards per prompt."""
    return apply(transform, fakes.rewards(*groups))[0].advantage[..., 0]


def equal(got, *groups, atol=2e-6):
    chex.assert_trees_all_close(got, jnp.asarray(groups, jnp.float32), atol=atol)
