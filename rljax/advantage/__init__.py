"""Credit: how hard each sampled token is pushed up or down.

A transform maps `Credit` to `Credit`, and transforms chain. A term is a loss function
with credit of its own. An algorithm is a sum of terms (see `algebra`). The other files
are named after what their transforms do:

    baseline, scale, whiten   subtract from the reward, multiply, both over the batch
    assign, gae, pass_at_k    replace the reward
    shaping                   change rewards by length, confidence or a teacher
    filter, token_filter      leave out rows, prompts and tokens
    importance                correct for a sampler that differs from the policy
    reduction                 turn weights into shares of a mean; one in every term
    controller, coefficient   hyper-parameters that follow measurements of the run
    fade, gac                 methods with a state

Add a transform as a function to the file of its verb, or write it in your own file.
Nothing here knows models, tokenizers, files or meshes: arrays in, arrays out.
"""

from rljax.advantage import fade, gac, importance, mass, solve_rate, token_filter
from rljax.advantage.algebra import (
    AdvantageTransform,
    Algorithm,
    Term,
    algorithm,
    chain,
    initial_credit,
    reads_current,
    stateless,
)
from rljax.advantage.assign import assign_by_class, assign_constant
from rljax.advantage.baseline import (
    center_by,
    center_by_greedy,
    center_by_group,
    center_by_leave_one_out,
    center_by_length,
    center_by_quantile,
    center_by_risk,
    skip_groups_of_one,
)
from rljax.advantage.coefficient import (
    entropy_controller,
    kl_controller,
    sampled_entropy,
    sampled_kl,
)
from rljax.advantage.controller import (
    Controller,
    constant,
    controlled,
    controlled_algorithm,
    delayed,
    ema,
    pid,
    schedule,
)
from rljax.advantage.fade import fade_controller, scale_by_fade
from rljax.advantage.filter import (
    drop_equal_groups,
    drop_truncated,
    keep_correct,
    keep_incorrect,
    keep_prompts,
    keep_rows,
    keep_source,
    keep_stored,
    restrict_members,
)
from rljax.advantage.gae import assign_gae, assign_return_to_go, assign_value_target
from rljax.advantage.importance import (
    log_mismatch,
    reject,
    weigh_by_importance,
    weigh_by_normalised_importance,
)
from rljax.advantage.mass import masses
from rljax.advantage.pass_at_k import (
    assign_lead_of_best,
    assign_pass_at_k_training,
    assign_pkpo,
    assign_pkpo_minus_one,
    center_by_pkpo_leave_one_out,
)
from rljax.advantage.reduction import (
    constant_length,
    constant_sum,
    prompt_mean,
    scale_weight,
    sequence_mean,
    token_mean,
    weighted_sequence_mean,
)
from rljax.advantage.scale import (
    anneal_by_batch_rate,
    normalise_by_group,
    scale_by_focal_factor,
    scale_by_group_norm,
    scale_by_group_std,
    scale_by_history,
    scale_by_mixed_share,
    scale_by_rate,
    scale_negative,
)
from rljax.advantage.shaping import (
    follow_teacher_by_entropy,
    punish_confident_errors,
    punish_overlong,
    rescale_reward,
)
from rljax.advantage.token_filter import (
    drop_covariant,
    keep_covariant,
    keep_top_entropy,
    silence_spurious,
)
from rljax.advantage.whiten import by_row, by_token, whiten_by_batch

__all__ = [
    "AdvantageTransform",
    "Algorithm",
    "Controller",
    "Term",
    "algorithm",
    "anneal_by_batch_rate",
    "assign_by_class",
    "assign_constant",
    "assign_gae",
    "assign_lead_of_best",
    "assign_pass_at_k_training",
    "assign_pkpo",
    "assign_pkpo_minus_one",
    "assign_return_to_go",
    "assign_value_target",
    "by_row",
    "by_token",
    "center_by",
    "center_by_greedy",
    "center_by_group",
    "center_by_leave_one_out",
    "center_by_length",
    "center_by_pkpo_leave_one_out",
    "center_by_quantile",
    "center_by_risk",
    "chain",
    "constant",
    "constant_length",
    "constant_sum",
    "controlled",
    "controlled_algorithm",
    "delayed",
    "drop_covariant",
    "drop_equal_groups",
    "drop_truncated",
    "ema",
    "entropy_controller",
    "fade",
    "fade_controller",
    "follow_teacher_by_entropy",
    "gac",
    "importance",
    "initial_credit",
    "keep_correct",
    "keep_covariant",
    "keep_incorrect",
    "keep_prompts",
    "keep_rows",
    "keep_source",
    "keep_stored",
    "keep_top_entropy",
    "kl_controller",
    "log_mismatch",
    "mass",
    "masses",
    "normalise_by_group",
    "pid",
    "prompt_mean",
    "punish_confident_errors",
    "punish_overlong",
    "reads_current",
    "reject",
    "rescale_reward",
    "restrict_members",
    "sampled_entropy",
    "sampled_kl",
    "scale_by_fade",
    "scale_by_focal_factor",
    "scale_by_group_norm",
    "scale_by_group_std",
    "scale_by_history",
    "scale_by_mixed_share",
    "scale_by_rate",
    "scale_negative",
    "scale_weight",
    "schedule",
    "sequence_mean",
    "silence_spurious",
    "skip_groups_of_one",
    "solve_rate",
    "stateless",
    "token_filter",
    "token_mean",
    "weigh_by_importance",
    "weigh_by_normalised_importance",
    "weighted_sequence_mean",
    "whiten_by_batch",
]
