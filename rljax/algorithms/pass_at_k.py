"""pass@k as the objective, estimated from one group of G >= k samples.

The equations of the advantages are in `rljax.advantage.pass_at_k`. The biased version,
which plugs the group's solve rate into pass@k, is `rljax.algorithms.power.pass_at_k`.
"""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax.algorithms.ppo_clip import ppo_clip_policy


def pkpo(k: int, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """PKPO without baseline: pass@k's unbiased gradient; failures are pushed up, too.

    Args:
      k: subset size, at most G.
      clip: distance of both bounds of the ratio from 1.

    Source: PKPO, arXiv:2505.15201 (SECONDARY; a test enumerates the subsets).
    """
    return ppo_clip_policy(adv.assign_pkpo(k), clip=clip)


def pkpo_minus_one(k: int, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """PKPO with the leave-one-out-minus-one baseline: unbiased, only successes.

    Args:
      k: subset size, at most G.
      clip: distance of both bounds of the ratio from 1.

    Source: PKPO, arXiv:2505.15201 (DERIVED; a test enumerates the subsets).
    """
    return ppo_clip_policy(adv.assign_pkpo_minus_one(k), clip=clip)


def pkpo_leave_one_out(k: int, *, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """PKPO's weights on RLOO, as in the maxrl repository: balanced, biased.

    Args:
      k: subset size, at most G.
      clip: distance of both bounds of the ratio from 1.

    Source: code tajwarfahim/maxrl (SECONDARY).
    """
    return ppo_clip_policy(adv.center_by_pkpo_leave_one_out(k), clip=clip)


def pass_at_k_training(
    k: int, *, epsilon: ArrayLike = 0.0, clip: ArrayLike = 0.2
) -> adv.Algorithm:
    """Pass@k Training, analytic: GRPO over all subsets of size k.

    Args:
      k: subset size, at most G.
      epsilon: added to the deviation, reward units; the authors' code has 1e-6.
      clip: distance of both bounds of the ratio from 1.

    Source: code RUCAIBox/Passk_Training (PAPER).
    """
    return ppo_clip_policy(adv.assign_pass_at_k_training(k, epsilon=epsilon), clip=clip)


def pass_at_group(*, clip: ArrayLike = 0.2) -> adv.Algorithm:
    """The best sample gets its lead over the second best, the others 0: pass@G.

    Args:
      clip: distance of both bounds of the ratio from 1.

    Source: arXiv:2503.19595; verl `grpo_passk` (SECONDARY).
    """
    return ppo_clip_policy(adv.assign_lead_of_best(), clip=clip)
