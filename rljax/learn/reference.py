"""A reference that follows the policy: renewed, or averaged, every n training steps.

    learner = following(update.learner(...), renewed(every=50))

An update is a function (step, reference, params) -> reference, of trees of one
structure; your own is one, too. With LoRA the trees are adapters: a renewal is exact,
an average is of the factors.
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
    """The learner that also updates `TrainState.reference`, after its own steps.

    Args:
      learner: what learns.
      reference_update: (step i32[], counted from 1, reference, params) -> reference.

    Raises:
      ValueError: when traced, if there is no reference, or it becomes another tree.
    """
    check.kind("learner", learner, Learner, "update.learner(...)")
    check.function("reference_update", reference_update, "step, reference, params")

    def learn(state: TrainState, rollout: Rollout):
        state, metrics = learner.learn(state, rollout)
        if state.reference is None:
            raise ValueError(
                "a reference that follows must be there, got None; start the run with"
                " reference parameters in TrainState.reference."
            )
        new = reference_update(state.step, state.reference, state.params)
        _require_like(state.reference, new)
        return state.replace(reference=new), metrics

    return learner._replace(learn=learn)


def renewed(*, every: int) -> ReferenceUpdate:
    """The reference becomes the policy every so many training steps."""
    check.count("every", every)

    def update(step, reference, params):
        due = step % every == 0
        return jax.tree.map(
            lambda r, p: jnp.where(due, p.astype(r.dtype), r), reference, params
        )

    return update


def averaged(*, decay: float, every: int = 1) -> ReferenceUpdate:
    """theta_ref <- decay theta_ref + (1 - decay) theta every so many training steps.

    Args:
      decay: in [0, 1); near 1 the reference stays far behind.
      every: training steps, at least 1.

    Raises:
      ValueError: when traced, if the reference is narrower than float32: such small
        steps would be lost.

    Source: GRPO-CARE, arXiv:2506.16141 (PAPER, code): .995, every 10 optimiser steps.
    """
    check.number("decay", decay, low=0, below=1)
    check.count("every", every)

    def update(step, reference, params):
        due = step % every == 0

        def move(r, p):
            if r.dtype.itemsize < 4:
                raise ValueError(
                    f"an averaged reference must be of float32, got {r.dtype}, in which"
                    " small steps are lost; start with a float32 copy of it."
                )
            return jnp.where(due, decay * r + (1 - decay) * p.astype(r.dtype), r)

        return jax.tree.map(move, reference, params)

    return update


def _require_like(old: Any, new: Any) -> None:
    if jax.tree.map(_kind, old) != jax.tree.map(_kind, new):
        raise ValueError(
            "reference_update must return a tree like the reference, but structure,"
            " shapes or dtypes differ; the policy's parameters are of its structure."
        )


def _kind(x):
    return x.shape, x.dtype
