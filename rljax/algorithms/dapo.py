"""GRPO with a wider upper clip and a token mean: DAPO, JustRL."""

from jax.typing import ArrayLike

from rljax import advantage as adv
from rljax import loss


def dapo(
    *,
    max_tokens: int,
    buffer: float | None = None,
    low: ArrayLike = 0.2,
    high: ArrayLike = 0.28,
) -> adv.Algorithm:
    """Clip-higher, token mean, dynamic sampling and soft overlong punishment (DAPO).

    Rewards in {0, 1} become -1 and 1.

    Args:
      max_tokens: completion tokens at which the punishment is -1; 20480 in the paper.
      buffer: length of the punishment's slope, tokens; None: a fifth of `max_tokens`,
        as in the paper, 4096 there.
      low, high: distances of the clip's bounds from 1.

    Source: arXiv:2503.14476, eqs. (8)-(13) (PAPER).
    Variants: the paper divides by each group's tokens (`adv.prompt_mean`), verl (as
      here) by those of the minibatch. verl's script adds a dual clip with cap 10. The
      paper also resamples until the batch is full of mixed groups; for that wrap the
      learner in `rljax.learn.dynamic_sampling`.
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.chain(
                adv.rescale_reward(scale=2.0, shift=-1.0),
                adv.punish_overlong(max_tokens=max_tokens, buffer=buffer),
                adv.normalise_by_group(),
                adv.drop_equal_groups(),
            ),
            weighting=adv.token_mean(),
            loss_fn=loss.ppo_clip(low, high),
        )
    )


def justrl(
    *, low: ArrayLike = 0.2, high: ArrayLike = 0.28, cap: ArrayLike = 10.0
) -> adv.Algorithm:
    """Group-normalised advantage, clip-higher, dual clip, token mean (JustRL).

    Args:
      low, high: distances of the clip's bounds from 1.
      cap: largest ratio that a negative advantage is multiplied by.

    Source: arXiv:2512.16649; code thunlp/JustRL@cf444e99
      train/examples/justrl/run_scaling_ssh_distill.sh (PAPER).
    """
    return adv.algorithm(
        policy=adv.Term(
            advantage=adv.normalise_by_group(),
            weighting=adv.token_mean(),
            loss_fn=loss.dual_clip(low, high, cap),
        )
    )
