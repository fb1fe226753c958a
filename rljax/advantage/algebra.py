"""The algebra: transforms of credit, terms of a loss, algorithms.

Every policy-gradient method multiplies each token's gradient by a coefficient. A
transform computes coefficients: it maps `Credit` to `Credit`, so transforms chain. A
`Term` is a loss function with credit of its own. An `Algorithm` is a sum of named
terms.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.advantage import seam, solve_rate
from rljax.types import (
    Credit,
    LossFn,
    NotMeasured,
    Rollout,
    TokenStats,
    is_measured,
)


class AdvantageTransform(NamedTuple):
    """A pair of pure functions, as in optax.

    init: () -> state.
    update: (credit, rollout, state) -> (credit, state).
    """

    init: Callable[[], Any]
    update: Callable[[Credit, Rollout, Any], tuple[Credit, Any]]


def stateless(fn: Callable[[Credit, Rollout], Credit]) -> AdvantageTransform:
    """The transform that applies `fn` and remembers nothing."""
    check.function("fn", fn, "credit, rollout")

    def update(credit, rollout, state):
        return fn(credit, rollout), state

    update.__qualname__ = getattr(fn, "__qualname__", "stateless")
    return AdvantageTransform(lambda: (), update)


def chain(*transforms: AdvantageTransform) -> AdvantageTransform:
    """Applies transforms from left to right; the empty chain changes nothing.

    Order matters: a filter before a reduction renormalises over what is left; a filter
    after it does not.
    """
    for i, transform in enumerate(transforms):
        check.kind(
            f"transforms[{i}] of chain", transform, AdvantageTransform, "token_mean()"
        )

    def update(credit, rollout, state):
        if len(state) != len(transforms):
            raise ValueError(
                f"chain of {len(transforms)} transforms needs a state of as many parts,"
                f" got {len(state)}; make it with this chain's own init()."
            )
        new_state = []
        for i, (transform, part) in enumerate(zip(transforms, state, strict=True)):
            place = f"link {i + 1} of {len(transforms)}"
            credit, part = seam.transformed(transform, credit, rollout, part, place)
            new_state.append(part)
        return credit, tuple(new_state)

    return AdvantageTransform(lambda: tuple(t.init() for t in transforms), update)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Term:
    """A summand of the loss: `sum(weight * loss_fn(now, credit, rollout))`.

    Data flow through the fields from top to bottom.

    advantage: transform run once per rollout batch; by default it changes nothing.
    weighting: transform run once per optimiser step on the whole minibatch. It contains
      exactly one reduction and may read `rollout.current`.
    loss_fn: (now, credit, rollout) -> f32[P, G, T] or [P, G, 1], minimised.
    local: whether a row's loss and gradient depend on that row alone. This holds for
      every loss of this library. Set False for a loss that compares rows; with
      microbatches it then costs one more forward pass.
    """

    advantage: AdvantageTransform = dataclasses.field(default_factory=chain)
    weighting: AdvantageTransform
    loss_fn: LossFn
    local: bool = True

    def __post_init__(self):
        check.kind("local of Term", self.local, bool, "False")
        check.function("loss_fn of Term", self.loss_fn, "now, credit, rollout")
        for name in ("advantage", "weighting"):
            transform = vars(self)[name]
            check.kind(f"{name} of Term", transform, AdvantageTransform, "token_mean()")


class Algorithm(NamedTuple):
    """A method, as the learner sees it; made by `algorithm`.

    init: () -> state.
    credit: (rollout, state) -> (credits, state, metrics), once per rollout batch.
    weigh: (credits, minibatch, state) -> (credits, state, metrics), per optimiser step.
    loss: (now, credits, minibatch) -> f32[], a plain sum over tokens and terms.
    local: () -> whether the losses of microbatches add up to that of the minibatch.
    """

    init: Callable[[], Any]
    credit: Callable[[Rollout, Any], tuple[tuple[Credit, ...], Any, dict]]
    weigh: Callable[[tuple[Credit, ...], Rollout, Any], tuple]
    loss: Callable[[TokenStats, tuple[Credit, ...], Rollout], jax.Array]
    local: Callable[[], bool] = lambda: True


class AlgorithmState(NamedTuple):
    """One state per term for its advantage chain and one for its weighting chain."""

    advantage: tuple
    weighting: tuple


def initial_credit(rollout: Rollout) -> Credit:
    """The credit that every chain starts from: the reward and the mask.

    Without a verdict (supervised terms) the reward is 1. Two kinds of rows are no
    members: those whose verifier failed and those without any token (in short groups).
    Their weight and their reward are 0.
    """
    mask, member = rollout.samples.mask, solve_rate.members(rollout)
    if is_measured(rollout.verdict):
        reward = rollout.verdict.reward[..., None].astype(jnp.float32)
    else:
        reward = jnp.ones(member.shape, jnp.float32)
    return Credit(
        advantage=jnp.where(member, reward, 0.0),
        weight=(mask & member).astype(jnp.float32),
        member=member,
    )


def algorithm(**terms: Term) -> Algorithm:
    """An algorithm from named terms; a term's name prefixes its metrics.

    Raises:
      ValueError: if there are no terms; when traced, if a weighting contains no
        reduction, if an advantage chain contains one, or if a transform or loss
        function returns other shapes or dtypes than it must (`seam.BrokenLaw`).
    """
    if not terms:
        raise ValueError("algorithm needs at least one term, got none; pass name=Term.")
    for name, term in terms.items():
        check.kind(
            f"term {name!r}", term, Term, "Term(weighting=token_mean(), loss_fn=nll())"
        )
    names, parts = tuple(terms), tuple(terms.values())

    def init():
        return numerics.strongly_typed(
            AlgorithmState(
                tuple(t.advantage.init() for t in parts),
                tuple(t.weighting.init() for t in parts),
            )
        )

    def credit(rollout, state):
        credits = (initial_credit(rollout),) * len(parts)
        made, new, metrics = _run_chains(
            "advantage", terms, credits, rollout, state.advantage
        )
        for name, c in zip(names, made, strict=True):
            _require_not_reduced(name, c)
        if not is_measured(rollout.verdict):
            for name, term, s in zip(names, parts, state.advantage, strict=True):
                _require_no_reward(name, term.advantage, rollout, s)
        return made, state._replace(advantage=new), metrics

    def weigh(credits, rollout, state):
        credits, new, metrics = _run_chains(
            "weighting", terms, credits, rollout, state.weighting
        )
        for name, c in zip(names, credits, strict=True):
            if not c.reduced:
                raise ValueError(
                    f"term {name!r} needs exactly one reduction, its weighting has"
                    " none; add token_mean() or another reduction to it."
                )
        return credits, state._replace(weighting=new), metrics

    def loss(now, credits, rollout):
        rollout = solve_rate.only_verified(rollout).without("current")
        total = jnp.zeros((), jnp.float32)
        for name, term, c in zip(names, parts, credits, strict=True):
            c = _without_idle_rows(c)
            value = seam.loss_of(term.loss_fn, now, c, rollout, f"term {name!r}")
            # A weight of NaN passes `weighs` and reaches the loss, so that the step is
            # refused.
            total += jnp.sum(jnp.where(c.weighs, c.weight * value, 0.0))
        return total

    return Algorithm(init, credit, weigh, loss, lambda: all(t.local for t in parts))


def _run_chains(kind: str, terms: dict[str, Term], credits, rollout: Rollout, states):
    """(credits, states, metrics) after one chain of each term."""
    rollout = solve_rate.only_verified(rollout)
    made, new, metrics = [], [], {}
    for (name, term), c, s in zip(terms.items(), credits, states, strict=True):
        place = f"term {name!r}, {kind}"
        chained = getattr(term, kind)
        c, s = seam.transformed(chained, c.replace(metrics={}), rollout, s, place)
        c = _lawful(c, rollout)
        metrics |= {f"{name}/{key}": value for key, value in c.metrics.items()}
        made.append(c.replace(metrics={}))
        new.append(s)
    return jax.lax.stop_gradient(tuple(made)), tuple(new), metrics


def _lawful(credit: Credit, rollout: Rollout) -> Credit:
    """Weights outside the mask become 0, negative ones NaN.

    Without this a traced coefficient that turns negative would go unnoticed. With NaN
    the step is refused, and counted.
    """
    weight = jnp.where(credit.weight < 0, jnp.nan, credit.weight)
    return credit.replace(weight=jnp.where(rollout.samples.mask, weight, 0.0))


def _without_idle_rows(credit: Credit) -> Credit:
    """Rows without weight get advantage 0: a NaN there would make gradients NaN."""
    idle = ~jnp.any(credit.weighs, -1, keepdims=True)
    return credit.replace(advantage=jnp.where(idle, 0.0, credit.advantage))


def _require_not_reduced(name: str, credit: Credit) -> None:
    if credit.reduced:
        raise ValueError(
            f"term {name!r} needs its one reduction in its weighting, its advantage"
            " chain has one; move it there, or swap the two chains."
        )


def _require_no_reward(name: str, transform, rollout: Rollout, state) -> None:
    # Without a verdict every reward is 1, and a baseline would make every advantage 0.
    credit = initial_credit(rollout)

    def made(reward):
        got, _ = transform.update(credit.replace(advantage=reward), rollout, state)
        return jnp.zeros(()) if got.advantage is reward else got.advantage

    # Under vmap an output that depends on the reward is batched; out_axes=None then
    # raises.
    try:
        jax.eval_shape(jax.vmap(made, out_axes=None), credit.advantage[None])
    except ValueError as error:
        raise ValueError(
            f"term {name!r} needs a verdict, as its advantage depends on the reward,"
            " got a rollout without one; pass verify to the loop, such as"
            " program.fused(act, learner, verify)."
        ) from error


def reads_current(algorithm: Algorithm, credits, rollout: Rollout, state) -> bool:
    """Whether the weighting reads the current policy's statistics; found by tracing."""
    try:
        jax.eval_shape(algorithm.weigh, credits, rollout.without("current"), state)
    except NotMeasured as missing:
        if missing.name != "current":
            raise
        return True
    return False
