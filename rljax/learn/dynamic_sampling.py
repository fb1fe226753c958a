"""Dynamic sampling: sample more groups than are trained on, keep the mixed ones."""

import jax.numpy as jnp

from rljax import check, mesh
from rljax.advantage import solve_rate
from rljax.layout import take
from rljax.learn.update import Learner
from rljax.types import Rollout, TrainState


def dynamic_sampling(learner: Learner, num_prompts: int) -> Learner:
    """Trains on the first `num_prompts` groups that are mixed.

    A group is mixed if it has right and wrong rows; rows whose verifier failed count as
    neither.

    The paper samples until a batch is full. In a compiled loop the number of prompts is
    fixed, so the stream must supply more than are trained on: if a share m of groups is
    mixed, about `num_prompts / m`. If too few are mixed, the batch is filled up with
    groups that are not. Put `adv.drop_equal_groups` before the reduction: it gives them
    weight 0, and the divisor counts mixed groups only.

    Args:
      learner: learns from the kept groups.
      num_prompts: number of groups to keep; at most the prompts of a rollout.

    Returns:
      A learner for larger rollouts. It logs `samples/mixed_kept`, the share of kept
      groups that are mixed; if it is below 1, draw more prompts.

    Raises:
      ValueError: when traced, if the rollout has fewer prompts.

    Source: DAPO, arXiv:2503.14476, section 3.2 (PAPER; the fixed number is ours).
    """
    check.kind("learner", learner, Learner, "update.learner(...)")
    check.count("num_prompts", num_prompts)

    def learn(state: TrainState, rollout: Rollout):
        available = rollout.samples.mask.shape[0]
        if available < num_prompts:
            raise ValueError(
                "dynamic sampling must be given more prompts than it keeps, num_prompts"
                f" = {num_prompts}, got a rollout of {available}; let the stream"
                " draw more per step."
            )
        mixed = solve_rate.by_correct(rollout).mixed[:, 0, 0]
        kept = jnp.argsort(~mixed, stable=True)[:num_prompts]
        rollout = mesh.constrain(take(rollout, kept))
        state, metrics = learner.learn(state, rollout)
        share = jnp.mean(mixed[kept], dtype=jnp.float32)
        return state, metrics | {"samples/mixed_kept": share}

    return learner._replace(learn=learn)
