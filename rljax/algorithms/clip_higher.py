"""GRPO with a wider upper clip and a token mean: DAPO, JustRL."""

from rljax import advantage as adv
from rljax import loss


def group_normalised() -> adv.AdvantageTransform:
    """(r - mean) / (sample std + 1e-6) of the group, as verl computes it.

    Most papers of this family leave the convention open and were run on verl.
    """
    return adv.chain(
        adv.center_by_group(), adv.scale_by_group_std(ddof=1, epsilon=1e-6)
    )


def dapo(
    *, max_tokens: int, buffer: int, low: float = 0.2, high: float = 0.28
) -> adv.Algorithm:
    """Clip-higher, token mean, dynamic sampling and soft overlong punishment (DAPO).

    Args:
      max_tokens, buffer: of `punish_overlong`, tokens; 20480 and 4096 in the paper.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2503.14476, eqs. (8)-(13) (PAPER). Rewards in {0, 1} become -1 and 1.
    Variants: the paper divides by each group's tokens (`adv.prompt_mean`), verl (as
      here) by those of the minibatch; verl's script adds a dual clip with 10; to
      resample until the batch is full of mixed groups is the sampler's matter.
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(
                adv.rescale_reward(scale=2.0, shift=-1.0),
                adv.punish_overlong(max_tokens=max_tokens, buffer=buffer),
                group_normalised(),
                adv.drop_equal_groups(),
            ),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        )
    )


def justrl(*, low: float = 0.2, high: float = 0.28, cap: float = 10.0) -> adv.Algorithm:
    """Group-normalised advantage, clip-higher, dual clip, token mean: nothing else.

    Source: arXiv:2512.16649; code thunlp/JustRL@cf444e99
      train/examples/justrl/run_scaling_ssh_distill.sh (PAPER).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=group_normalised(),
            weighting=adv.token_mean(),
            loss_fn=loss.dual_clip(low, high, cap),
        )
    )
