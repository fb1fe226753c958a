"""Dynamic sampling: samples more groups than are trained on, and keeps mixed ones."""

import jax.numpy as jnp

from rljax import check, mesh
from rljax.advantage import solve_rate
from rljax.layout import take
from rljax.learn.update import Learner
from rljax.types import Rollout, TrainState


def dynamic_sampling(learner: Learner, num_prompts: int) -> Learner:
    """Trains on the first `num_prompts` groups that are not all right nor all wrong.

    A row whose verifier failed is neither right nor wrong: the other rows of its group
    decide.

    The paper samples until a batch is full. In a compiled loop the stream gives each
    step more prompts than are trained on instead, a constant factor: where a share m of
    groups is mixed, about `num_prompts / m`. What is missing then is filled up with
    groups of one outcome, to which `adv.drop_equal_groups` gives no weight; with it the
    divisor is right however full the batch is.

    Args:
      learner: what learns from the groups that are kept.
      num_prompts: groups that are kept; at most the prompts of a rollout.

    Returns:
      A learner for larger rollouts; logs `samples/mixed_kept`, the share of groups
      trained on that are mixed: below 1, draw more prompts.

    Raises:
      ValueError: when traced, if the rollout has fewer prompts.

    Source: DAPO, arXiv:2503.14476, section 3.2 (PAPER; the constant factor is ours).
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
