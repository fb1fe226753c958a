"""Scales that follow the run: CurveRL's history of solve rates, A-GRAE's batch mean."""

from rljax import advantage as adv
from rljax.algorithms import clipped


def curve_rl(num_samples: int, *, window: int = 10, clip: float = 0.2) -> adv.Algorithm:
    """A = w (r - p), w = f(p) / F(p) of the last batches' solve rates (CurveRL).

    Stateful. Source: zhyzmath/CurveRL (PAPER: authors' code).

    Args:
      num_samples: G, samples per prompt.
      window: batches remembered.
      clip: distance of both bounds of the ratio from 1.
    """
    return clipped.ppo_clip_policy(
        adv.center_by_group(),
        adv.scale_by_history(num_samples, window=window),
        clip=clip,
    )


def a_grae(*, k0: float = 1.0, ddof: int = 1, clip: float = 0.2) -> adv.Algorithm:
    """GRPO's A times h(p, B), successes also times min(1, B / k0) (A-GRAE).

    B is the batch's mean solve rate; k0 is 1 for mathematics, else 0.5.
    Source: Yu7-code/A-GRAE (PAPER: authors' code, ddof 1).
    """
    return clipped.ppo_clip_policy(
        adv.center_by_group(),
        adv.scale_by_group_std(ddof=ddof),
        adv.anneal_by_batch_rate(k0),
        clip=clip,
    )
