"""The algebra of credit: transforms, terms, algorithms, controllers, masses."""

from rljax.advantage import mass
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
    center_by_group,
    focal,
    leave_one_out,
    scale_by_group_std,
    scale_negative,
)
from rljax.advantage.controller import (
    Controller,
    constant,
    controlled,
    ema,
    pid,
    schedule,
)
from rljax.advantage.fade import fade_advantage, fade_controller
from rljax.advantage.mass import masses
from rljax.advantage.reduction import (
    constant_length,
    scale_weight,
    sequence_mean,
    token_mean,
)

__all__ = [
    "AdvantageTransform",
    "Algorithm",
    "Controller",
    "Term",
    "algorithm",
    "center_by_group",
    "chain",
    "constant",
    "constant_length",
    "controlled",
    "ema",
    "fade_advantage",
    "fade_controller",
    "focal",
    "leave_one_out",
    "mass",
    "masses",
    "pid",
    "reads_current",
    "scale_by_group_std",
    "scale_negative",
    "scale_weight",
    "schedule",
    "sequence_mean",
    "start",
    "stateless",
    "token_mean",
]
