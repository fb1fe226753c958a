"""pass@k as the objective, estimated from one group of G >= k samples.

The advantages, their equations and sources: `rljax.advantage.pass_at_k`. `pass_at_k`
with the plug-in solve rate is in `rljax.algorithms.power`.
"""

from rljax import advantage as adv
from rljax.algorithms import clipped


def pkpo(k: int, *, clip: float = 0.2) -> adv.Algorithm:
    """PKPO without baseline: pass@k's unbiased gradient, failures pushed up too.

    Source: PKPO (SECONDARY; subsets enumerated in the test).
    """
    return clipped.ppo_clip_policy(adv.assign_pkpo(k), clip=clip)


def pkpo_minus_one(k: int, *, clip: float = 0.2) -> adv.Algorithm:
    """PKPO with the leave-one-out-minus-one baseline: unbiased, successes alone.

    Source: PKPO (DERIVED; subsets enumerated in the test).
    """
    return clipped.ppo_clip_policy(adv.assign_pkpo_minus_one(k), clip=clip)


def pkpo_leave_one_out(k: int, *, clip: float = 0.2) -> adv.Algorithm:
    """PKPO's weights on RLOO, as in the maxrl repository: balanced, biased.

    Source: tajwarfahim/maxrl (SECONDARY code).
    """
    return clipped.ppo_clip_policy(adv.center_by_pkpo_leave_one_out(k), clip=clip)


def pass_at_k_training(
    k: int, *, epsilon: float = 0.0, clip: float = 0.2
) -> adv.Algorithm:
    """Pass@k Training, analytic: GRPO over all subsets of size k.

    Source: RUCAIBox/Passk_Training (PAPER: authors' code).
    """
    return clipped.ppo_clip_policy(
        adv.assign_pass_at_k_training(k, epsilon=epsilon), clip=clip
    )


def pass_at_group(*, clip: float = 0.2) -> adv.Algorithm:
    """The best sample gets its lead over the second best: pass@G (arXiv:2503.19595)."""
    return clipped.ppo_clip_policy(adv.assign_lead_of_best(), clip=clip)
