"""A reference that follows the policy: replaced, or averaged, every n training steps.

    learner = following(update.learner(...), renewed(every=50))

A reference update is a function (step, reference, params) -> reference; all trees have
the same structure. Write your own in the same form. With LoRA the trees are adapters:
`renewed` is exact, `averaged` averages the low-rank factors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check
from rljax.learn.update import Learner
from rljax.types import Rollout, TrainState

ReferenceUpdate = Callable[[jax.Array, Any, Any], Any]


def following(learner: Learner, reference_update: ReferenceUpdate) -> Learner:
    """The learner that also updates `TrainState.reference` after its optimiser steps.

    Args:
      learner: any learner.
      reference_update: (step, reference, params) -> reference; step i32[] counts
        training steps from 1.

    Raises:
      ValueError: when traced, if there is no reference, or if the new one differs in
        structure, shapes or dtypes.
    """
    check.kind("learner", learner, Learner, "update.learner(...)")
    check.function("reference_update", reference_update, "step, reference, params")

    def learn(state: TrainState, rollout: Rollout):
        state, metrics = learner.learn(state, rollout)
        if state.reference is None:
            raise ValueError(
                "a learner made by following() needs a reference, got None; start the"
                " run with reference parameters in TrainState.reference."
            )
        new = reference_update(state.step, state.reference, state.params)
        _require_like(state.reference, new)
        return state.replace(reference=new), metrics

    return learner._replace(learn=learn)


def renewed(*, every: int) -> ReferenceUpdate:
    """Replaces the reference by the policy every `every` training steps."""
    check.count("every", every)

    def update(step, reference, params):
        due = step % every == 0
        return jax.tree.map(
            lambda r, p: jnp.where(due, p.astype(r.dtype), r), reference, params
        )

    return update


def averaged(*, decay: float, every: int = 1) -> ReferenceUpdate:
    """theta_ref <- decay theta_ref + (1 - decay) theta every `every` training steps.

    Args:
      decay: in [0, 1); near 1 the reference follows slowly.
      every: training steps, at least 1.

    Raises:
      ValueError: when traced, if the reference is narrower than float32, which would
        lose its small steps.

    Source: GRPO-CARE, arXiv:2506.16141 (PAPER, code): .995, every 10 optimiser steps.
    """
    check.number("decay", decay, low=0, below=1)
    check.count("every", every)

    def update(step, reference, params):
        due = step % every == 0

        def move(r, p):
            if r.dtype.itemsize < 4:
                raise ValueError(
                    f"an averaged reference must be float32, got {r.dtype}, in which"
                    " small steps are lost; start with a float32 copy of it."
                )
            return jnp.where(due, decay * r + (1 - decay) * p.astype(r.dtype), r)

        return jax.tree.map(move, reference, params)

    return update


def _require_like(old: Any, new: Any) -> None:
    if jax.tree.map(_shape_and_dtype, old) != jax.tree.map(_shape_and_dtype, new):
        raise ValueError(
            "reference_update must return a tree like the reference, got another"
            " structure, shape or dtype; keep those of the policy's parameters."
        )


def _shape_and_dtype(x):
    return x.shape, x.dtype
