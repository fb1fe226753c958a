"""Recipes: functions from hyper-parameters to an `Algorithm`, with their equations.

A recipe is a dozen lines made of `rljax.advantage` and `rljax.loss`. A file holds one
method or one family and is named after it. Symbols of the docstrings: r is a sample's
reward, p the solve rate of its group, q = 1 - p; A_S and A_F are the advantages of
successes and failures; a mass is p A_S or -q A_F; f is the objective that the method
ascends on-policy; rho is the ratio pi / pi_old; sg[x] is x without its gradient. The
section "Source:" says where the formula is from and ends in one of the tags

    PAPER          the paper's text or its authors' code
    SECONDARY      third parties that agree
    RECONSTRUCTED  our reading of an ambiguous source
    DERIVED        algebra from a stated formula
    TEXTBOOK       known to everybody

`docs/methods.md` lists all recipes. Add a recipe as a function to a file here, or write
it in your own file. Nothing here knows models, samplers or the learner.
"""

from rljax.algorithms.a_grae import a_grae
from rljax.algorithms.ace import ace
from rljax.algorithms.cispo import cispo, minpro
from rljax.algorithms.clip_cov import clip_cov, kl_cov
from rljax.algorithms.curve_rl import curve_rl
from rljax.algorithms.dapo import dapo, justrl
from rljax.algorithms.dasd import dasd
from rljax.algorithms.fade import fade
from rljax.algorithms.gft import gft
from rljax.algorithms.gmpo import gmpo
from rljax.algorithms.grpo import dr_grpo, grpo, grpo_kl, norm_grpo, qae
from rljax.algorithms.gspo import gspo, gspo_token
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
from rljax.algorithms.minirl import minirl
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
from rljax.algorithms.ppo import ppo, turn_ppo
from rljax.algorithms.ppo_clip import ppo_clip_policy
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
from rljax.algorithms.sapo import sapo
from rljax.algorithms.skywork_or1 import skywork_or1
from rljax.algorithms.stapo import stapo
from rljax.algorithms.top_entropy import over_all, over_selected, top_entropy

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
    "minirl",
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
    "ppo_clip_policy",
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
