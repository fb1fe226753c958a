"""Loss functions: `(now, credit, rollout) -> f32[P, G, T]`, minimised, per token.

    surrogate, ratio   policy-gradient losses of a token's ratio
    sequence_ratio     those of one ratio per row or turn
    supervised         losses that raise the likelihood of given tokens
    kl                 divergences and entropy
    value              the critic's loss
    combine            loss functions made from loss functions

A loss function is local: a row's loss depends on that row alone. It never averages, as
weights and means belong to the term. Write your own as a function in your own file.
Nothing here knows models, samplers or credit transforms.
"""

from rljax.loss import sequence_ratio, supervised
from rljax.loss.combine import (
    against_behaviour,
    against_old,
    times_advantage,
    times_ratio,
    unless_clipped,
)
from rljax.loss.kl import (
    chi_squared,
    chi_squared_exact,
    chi_squared_straight_through,
    entropy_bonus,
    entropy_bonus_sampled,
    kl_absolute,
    kl_forward_exact,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_k3_straight_through,
    kl_reverse_exact,
)
from rljax.loss.ratio import cispo, cispo_band, dual_clip, minpro, sapo, unclipped_ratio
from rljax.loss.sequence_ratio import clipping_bias, gmpo, gspo, gspo_token, turn_ppo
from rljax.loss.supervised import (
    consistency,
    reweighted,
    shaped_probability,
    with_behaviour_prob_one,
)
from rljax.loss.surrogate import (
    is_clipped,
    log_ratio,
    nll,
    ppo_clip,
    reinforce,
    token_ratio,
)
from rljax.loss.value import value_loss

__all__ = [
    "against_behaviour",
    "against_old",
    "chi_squared",
    "chi_squared_exact",
    "chi_squared_straight_through",
    "cispo",
    "cispo_band",
    "clipping_bias",
    "consistency",
    "dual_clip",
    "entropy_bonus",
    "entropy_bonus_sampled",
    "gmpo",
    "gspo",
    "gspo_token",
    "is_clipped",
    "kl_absolute",
    "kl_forward_exact",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_k3_straight_through",
    "kl_reverse_exact",
    "log_ratio",
    "minpro",
    "nll",
    "ppo_clip",
    "reinforce",
    "reweighted",
    "sapo",
    "sequence_ratio",
    "shaped_probability",
    "supervised",
    "times_advantage",
    "times_ratio",
    "token_ratio",
    "turn_ppo",
    "unclipped_ratio",
    "unless_clipped",
    "value_loss",
    "with_behaviour_prob_one",
]
