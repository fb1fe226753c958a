"""One prompt's tokens written down by hand, and what a loss makes of them."""

from typing import NamedTuple

import fakes
import jax
import jax.numpy as jnp
import numpy as np

from rljax import advantage as adv
from rljax import numerics
from rljax.types import Credit, Rollout, TokenStats


class Case(NamedTuple):
    rollout: Rollout
    credit: Credit


def _tokens(values, shape):
    return jnp.asarray(np.broadcast_to(np.asarray(values, np.float32), shape))[None]


def case(
    advantage, log_ratio=0.0, *, logp=-1.0, entropy=0.5, behaviour=None, mask=None
) -> Case:
    """A minibatch of one prompt.

    Args:
      advantage, log_ratio, logp, entropy: [G, T] or broadcastable to it; `logp` is the
        current policy's, `log_ratio` its distance from the old one.
      behaviour: what d = log(pi_old / mu) is, or None for no mismatch.
      mask: [G, T] or None for all tokens.
    """
    parts = (advantage, log_ratio, logp, entropy, 0 if behaviour is None else behaviour)
    shape = np.broadcast_shapes(*(np.atleast_2d(p).shape for p in parts), (1, 1))
    if mask is not None:
        shape = np.broadcast_shapes(shape, np.atleast_2d(mask).shape)
    now = TokenStats(logp=_tokens(logp, shape), entropy=_tokens(entropy, shape))
    old = now.replace(logp=now.logp - _tokens(log_ratio, shape))
    drawn = 0.0 if behaviour is None else _tokens(behaviour, shape)
    rows = fakes.rollout(1, *shape)
    samples = rows.samples.replace(
        mask=_tokens(1 if mask is None else mask, shape) > 0,
        behaviour=old.replace(logp=old.logp - drawn),
    )
    rows = rows.replace(samples=samples, old=old, current=now)
    credit = adv.initial_credit(rows).replace(advantage=_tokens(advantage, shape))
    return Case(rows, credit)


def weigh(case: Case, weighting) -> Credit:
    """The credit after a weighting chain's first update."""
    state = numerics.strongly_typed(weighting.init())
    return jax.jit(weighting.update)(case.credit, case.rollout, state)[0]


def loss_of(case: Case, loss_fn, weighting=None):
    """(loss, coefficient -dL/dlogp [G, T]) under a weighting; None: a token mean."""
    weighting = adv.token_mean() if weighting is None else weighting
    credit = weigh(case, weighting)

    def loss(logp):
        now = case.rollout.current.replace(logp=logp)
        value = loss_fn(now, credit, case.rollout)
        return jnp.sum(jnp.where(credit.weight > 0, credit.weight * value, 0.0))

    value, grad = jax.jit(jax.value_and_grad(loss))(case.rollout.current.logp)
    return float(value), -np.asarray(grad[0])


def per_token(case: Case, loss_fn):
    """The loss of each token, [G, T]."""
    value = jax.jit(loss_fn)(case.rollout.current, case.credit, case.rollout)
    return np.asarray(jnp.broadcast_to(value, case.credit.weight.shape)[0])
