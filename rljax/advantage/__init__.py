"""The algebra of credit: transforms, terms, algorithms, controllers, masses."""

from rljax.advantage import correction, gac, mass, mixing, token_weight
from rljax.advantage.algebra import (
    AdvantageTransform,
    Algorithm,
    Term,
    algorithm,
    chain,
    reads_current,
    start,
    stateless,
)
from rljax.advantage.baseline import (
    center_by,
    center_by_greedy,
    center_by_group,
    center_by_length,
    center_by_quantile,
    focal,
    leave_one_out,
    scale_by_group_norm,
    scale_by_group_std,
    scale_negative,
)
from rljax.advantage.batch import (
    anneal_by_batch_rate,
    by_row,
    by_token,
    return_to_go,
    scale_by_mixed_share,
    whiten_by_batch,
)
from rljax.advantage.controlled_algorithm import controlled_algorithm
from rljax.advantage.controller import (
    Controller,
    constant,
    controlled,
    ema,
    pid,
    schedule,
)
from rljax.advantage.correction import (
    importance_weight,
    log_mismatch,
    normalised_importance_weight,
    reject,
)
from rljax.advantage.entropy import (
    delayed,
    entropy_controller,
    sampled_entropy,
    set_advantage,
)
from rljax.advantage.fade import fade_advantage, fade_controller
from rljax.advantage.gae import gae_advantage, value_target
from rljax.advantage.history import scale_by_history
from rljax.advantage.kl_control import kl_controller, sampled_kl
from rljax.advantage.mass import masses
from rljax.advantage.pass_at_k import (
    best_minus_second,
    pass_at_k_training,
    pkpo,
    pkpo_leave_one_out,
    pkpo_minus_one,
)
from rljax.advantage.rate import assign_by_class, center_by_risk, scale_by_rate
from rljax.advantage.reduction import (
    constant_length,
    prompt_mean,
    scale_weight,
    sequence_mean,
    token_mean,
)
from rljax.advantage.row import keep_correct, keep_incorrect, keep_rows
from rljax.advantage.shaping import (
    affine_reward,
    drop_equal_groups,
    drop_truncated,
    follow_teacher_by_entropy,
    overlong_penalty,
    punish_confident_errors,
)
from rljax.advantage.token_weight import (
    drop_covariant,
    keep_covariant,
    keep_top_entropy,
    silence_spurious,
)
from rljax.analysis import profile

__all__ = [
    "AdvantageTransform",
    "Algorithm",
    "Controller",
    "Term",
    "affine_reward",
    "algorithm",
    "anneal_by_batch_rate",
    "assign_by_class",
    "best_minus_second",
    "by_row",
    "by_token",
    "center_by",
    "center_by_greedy",
    "center_by_group",
    "center_by_length",
    "center_by_quantile",
    "center_by_risk",
    "chain",
    "constant",
    "constant_length",
    "controlled",
    "controlled_algorithm",
    "correction",
    "delayed",
    "drop_covariant",
    "drop_equal_groups",
    "drop_truncated",
    "ema",
    "entropy_controller",
    "fade_advantage",
    "fade_controller",
    "focal",
    "follow_teacher_by_entropy",
    "gac",
    "gae_advantage",
    "importance_weight",
    "keep_correct",
    "keep_covariant",
    "keep_incorrect",
    "keep_rows",
    "keep_top_entropy",
    "kl_controller",
    "leave_one_out",
    "log_mismatch",
    "mass",
    "masses",
    "mixing",
    "normalised_importance_weight",
    "overlong_penalty",
    "pass_at_k_training",
    "pid",
    "pkpo",
    "pkpo_leave_one_out",
    "pkpo_minus_one",
    "profile",
    "prompt_mean",
    "punish_confident_errors",
    "reads_current",
    "reject",
    "return_to_go",
    "sampled_entropy",
    "sampled_kl",
    "scale_by_group_norm",
    "scale_by_group_std",
    "scale_by_history",
    "scale_by_mixed_share",
    "scale_by_rate",
    "scale_negative",
    "scale_weight",
    "schedule",
    "sequence_mean",
    "set_advantage",
    "silence_spurious",
    "start",
    "stateless",
    "token_mean",
    "token_weight",
    "value_target",
    "whiten_by_batch",
]
