"""Recipes: functions from numbers to an `Algorithm`, each citing its equations."""

from rljax.algorithms.clip_higher import dapo, group_normalised, justrl
from rljax.algorithms.clipped import clipped_policy
from rljax.algorithms.confidence import ace, dasd
from rljax.algorithms.critic import ppo, turn_ppo
from rljax.algorithms.curriculum import a_grae, curve_rl
from rljax.algorithms.entropy_control import skywork_or1
from rljax.algorithms.entropy_mechanism import clip_cov, kl_cov
from rljax.algorithms.fade import fade
from rljax.algorithms.gft import gft
from rljax.algorithms.grpo import dr_grpo, grpo, grpo_kl, norm_grpo, qae
from rljax.algorithms.hybrid import chord, gac, hpt, luffy, mixture, srft, uft
from rljax.algorithms.imitation import (
    asft,
    asft_sampled,
    dft,
    gcsl,
    iw_sft,
    lfu,
    psft,
    sft,
)
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
from rljax.algorithms.rollout_correction import (
    corrected,
    geometric_rejection,
    icepop,
    sequence_mask,
    sequence_mask_tis,
    tis,
    truncated_reinforce,
)
from rljax.algorithms.sequence_level import gmpo, gspo, gspo_token
from rljax.algorithms.token_filter import over_all, over_selected, stapo, top_entropy
from rljax.algorithms.token_level import cispo, minpro, sapo

__all__ = [
    "a_grae",
    "ace",
    "asft",
    "asft_sampled",
    "asym_grpo",
    "asym_grpo_by_odds",
    "chord",
    "cispo",
    "clip_cov",
    "clipped_policy",
    "corrected",
    "curve_rl",
    "dapo",
    "dasd",
    "dft",
    "dr_grpo",
    "f_grpo",
    "fade",
    "gac",
    "gcsl",
    "geometric_rejection",
    "gft",
    "gmpo",
    "gpg",
    "group_normalised",
    "grpo",
    "grpo_kl",
    "gspo",
    "gspo_token",
    "hpt",
    "icepop",
    "iw_sft",
    "justrl",
    "kl_cov",
    "lfu",
    "linear_r",
    "log_failure",
    "log_odds",
    "luffy",
    "maxrl",
    "minpro",
    "mixture",
    "norm_grpo",
    "nsr",
    "opo",
    "over_all",
    "over_selected",
    "pass_at_group",
    "pass_at_k",
    "pass_at_k_training",
    "pkpo",
    "pkpo_leave_one_out",
    "pkpo_minus_one",
    "power",
    "power_asym",
    "ppo",
    "psft",
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
    "sapo",
    "sequence_mask",
    "sequence_mask_tis",
    "sft",
    "skywork_or1",
    "sqrt_r",
    "srft",
    "stapo",
    "tis",
    "top_entropy",
    "truncated_reinforce",
    "turn_ppo",
    "uft",
    "w_reinforce",
]
