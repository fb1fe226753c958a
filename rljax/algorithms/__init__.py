"""Recipes: functions from numbers to an `Algorithm`, each citing its equations."""

from rljax.algorithms.clipped import clipped_policy
from rljax.algorithms.curriculum import a_grae, curve_rl
from rljax.algorithms.fade import fade
from rljax.algorithms.grpo import dr_grpo, grpo, grpo_kl, norm_grpo, qae
from rljax.algorithms.maxrl import linear_r, log_failure, log_odds, maxrl, sqrt_r
from rljax.algorithms.pass_at_k import (
    pass_at_group,
    pass_at_k_training,
    pkpo,
    pkpo_leave_one_out,
    pkpo_minus_one,
)
from rljax.algorithms.power import (
    asym_grpo,
    asym_grpo_by_odds,
    f_grpo,
    pass_at_k,
    power,
    power_asym,
    rs_grpo,
)
from rljax.algorithms.reinforce import (
    gpg,
    opo,
    raft,
    reinforce,
    reinforce_signed,
    remax,
    rloo,
)
from rljax.algorithms.reinforce_plus_plus import (
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
)
from rljax.algorithms.rlvr_decomposed import nsr, psr, w_reinforce

__all__ = [
    "a_grae",
    "asym_grpo",
    "asym_grpo_by_odds",
    "clipped_policy",
    "curve_rl",
    "dr_grpo",
    "f_grpo",
    "fade",
    "gpg",
    "grpo",
    "grpo_kl",
    "linear_r",
    "log_failure",
    "log_odds",
    "maxrl",
    "norm_grpo",
    "nsr",
    "opo",
    "pass_at_group",
    "pass_at_k",
    "pass_at_k_training",
    "pkpo",
    "pkpo_leave_one_out",
    "pkpo_minus_one",
    "power",
    "power_asym",
    "psr",
    "qae",
    "raft",
    "reinforce",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "reinforce_signed",
    "remax",
    "rloo",
    "rs_grpo",
    "sqrt_r",
    "w_reinforce",
]
