"""Every algorithm of the library, and what it needs to be tried on a toy.

Written for groups of `G` and completions of `T` tokens; longer ones only move the
constants by which losses are divided.
"""

from typing import NamedTuple

import pytest

from rljax import algorithms
from rljax.advantage import Algorithm
from rljax.types import Source

G, T = 8, 2

OWN, GREEDY, DEMONSTRATION = Source.OWN, Source.GREEDY, Source.DEMONSTRATION


class Case(NamedTuple):
    """An algorithm and the fakes it needs.

    others: rows beside the group's own samples; only: they are all there is.
    """

    algorithm: Algorithm
    others: tuple[int, ...] = ()
    only: bool = False


def imitation(algorithm):
    return Case(algorithm, others=(DEMONSTRATION,), only=True)


def mixed(algorithm):
    return Case(algorithm, others=(DEMONSTRATION,))


a = algorithms
CASES = {
    "a_grae": Case(a.a_grae()),
    "ace": Case(a.ace()),
    "asft": imitation(a.asft()),
    "asft_sampled": imitation(a.asft_sampled()),
    "asym_grpo": Case(a.asym_grpo(0.5)),
    "asym_grpo_by_odds": Case(a.asym_grpo_by_odds()),
    "chord": mixed(a.chord()),
    "cispo": Case(a.cispo()),
    "clip_cov": Case(a.clip_cov()),
    "ppo_clip_policy": Case(a.ppo_clip_policy()),
    "corrected": Case(a.corrected()),
    "curve_rl": Case(a.curve_rl(G)),
    "dapo": Case(a.dapo(max_tokens=2 * T, buffer=T)),
    "dasd": Case(a.dasd()),
    "dft": imitation(a.dft()),
    "dr_grpo": Case(a.dr_grpo(T)),
    "f_grpo": Case(a.f_grpo(1.0)),
    "fade": Case(a.fade()),
    "gac": mixed(a.gac()),
    "gcsl": imitation(a.gcsl()),
    "geometric_rejection": Case(a.geometric_rejection()),
    "gft": mixed(a.gft()),
    "gmpo": Case(a.gmpo()),
    "gpg": Case(a.gpg()),
    "grpo": Case(a.grpo()),
    "grpo_kl": Case(a.grpo_kl()),
    "gspo": Case(a.gspo()),
    "gspo_token": Case(a.gspo_token()),
    "hpt": mixed(a.hpt(max_tokens=T)),
    "icepop": Case(a.icepop()),
    "iw_sft": imitation(a.iw_sft()),
    "justrl": Case(a.justrl()),
    "kl_cov": Case(a.kl_cov()),
    "lfu": imitation(a.lfu(0.01)),
    "linear_r": Case(a.linear_r()),
    "log_failure": Case(a.log_failure()),
    "log_odds": Case(a.log_odds()),
    "luffy": mixed(a.luffy(max_tokens=T)),
    "maxrl": Case(a.maxrl()),
    "minirl": Case(a.minirl()),
    "minpro": Case(a.minpro()),
    "mixture": mixed(a.mixture(0.5)),
    "norm_grpo": Case(a.norm_grpo(1.0)),
    "nsr": Case(a.nsr()),
    "opo": Case(a.opo()),
    "pass_at_group": Case(a.pass_at_group()),
    "pass_at_k": Case(a.pass_at_k(2.0)),
    "pass_at_k_training": Case(a.pass_at_k_training(2)),
    "pkpo": Case(a.pkpo(2)),
    "pkpo_leave_one_out": Case(a.pkpo_leave_one_out(2)),
    "pkpo_minus_one": Case(a.pkpo_minus_one(2)),
    "power": Case(a.power(2.0)),
    "power_asym": Case(a.power_asym(1.0, 2.0)),
    "ppo": Case(a.ppo()),
    "psft": imitation(a.psft()),
    "psr": Case(a.psr()),
    "qae": Case(a.qae()),
    "raft": Case(a.raft()),
    "reinforce": Case(a.reinforce()),
    "reinforce_plus_plus": Case(a.reinforce_plus_plus()),
    "reinforce_plus_plus_baseline": Case(a.reinforce_plus_plus_baseline()),
    "reinforce_signed": Case(a.reinforce_signed()),
    "remax": Case(a.remax(), others=(GREEDY,)),
    "rloo": Case(a.rloo()),
    "rs_grpo": Case(a.rs_grpo()),
    "sapo": Case(a.sapo()),
    "sequence_mask": Case(a.sequence_mask()),
    "sequence_mask_tis": Case(a.sequence_mask_tis()),
    "sft": imitation(a.sft()),
    "skywork_or1": Case(a.skywork_or1()),
    "sqrt_r": Case(a.sqrt_r()),
    "srft": mixed(a.srft(max_tokens=T)),
    "stapo": Case(a.stapo()),
    "tis": Case(a.tis()),
    "top_entropy": Case(a.top_entropy()),
    "truncated_reinforce": Case(a.truncated_reinforce()),
    "turn_ppo": Case(a.turn_ppo()),
    "uft": mixed(a.uft()),
    "w_reinforce": Case(a.w_reinforce()),
}
# One algorithm of each family, chosen by what makes it different. The fast set runs
# these where all would take minutes; the slow set runs all.
FAMILIES = {
    "clip_cov",  # a quantile over the batch
    "fade",  # a controller
    "gft",  # rows of several sources
    "grpo",
    "gspo",  # ratios of whole sequences
    "ppo",  # values
    "reinforce_plus_plus",  # whitened over the batch
    "sft",  # demonstrations alone
    "tis",  # a correction of the sampler
}
BY_FAMILY = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in FAMILIES))
    for name in CASES
]
PARTS = {"over_all", "over_selected"}
