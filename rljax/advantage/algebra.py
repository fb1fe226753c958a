"""The algebra: transforms of credit, terms of a loss, algorithms.

Every policy-gradient method is a field of coefficients over tokens. A transform maps
`Credit` to `Credit`, so transforms chain; a `Term` is a loss function with credit of
its own; an `Algorithm` is a sum of named terms.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rljax import check, numerics
from rljax.types import Credit, Missing, NotMeasured, Rollout, TokenStats


class AdvantageTransform(NamedTuple):
    """A pair of pure functions: `init() -> state` and
    `update(credit, state, rollout) -> (credit, state)`."""

    init: Callable[[], Any]
    update: Callable[[Credit, Any, Rollout], tuple[Credit, Any]]


def stateless(fn: Callable[[Credit, Rollout], Credit]) -> AdvantageTransform:
    """The transform that applies `fn` and remembers nothing."""
    check.function("fn", fn, "credit, rollout")
    return AdvantageTransform(lambda: (), lambda c, s, r: (fn(c, r), s))


def chain(*transforms: AdvantageTransform) -> AdvantageTransform:
    """Applies transforms from left to right; the empty chain changes nothing.

    Order means something: a filter before a reduction renormalises over what is left,
    after it, it does not.
    """
    for i, transform in enumerate(transforms):
        check.kind(
            f"transforms[{i}] of chain", transform, AdvantageTransform, "token_mean()"
        )

    def update(credit, state, rollout):
        if len(state) != len(transforms):
            raise ValueError(
                f"chain of {len(transforms)} transforms needs a state of as many parts,"
                f" got {len(state)}; make it with this chain's own init()."
            )
        new_state = []
        for transform, part in zip(transforms, state, strict=True):
            credit, part = transform.update(credit, part, rollout)
            new_state.append(part)
        return credit, tuple(new_state)

    return AdvantageTransform(lambda: tuple(t.init() for t in transforms), update)


LossFn = Callable[[TokenStats, Credit, Rollout], jax.Array]


@dataclasses.dataclass(frozen=True)
class Term:
    """A summand of the loss: `sum(weight * loss_fn(now, credit, rollout))`.

    loss_fn: minimised, broadcastable to f32[P, G, T], local to a prompt.
    advantage: chain run once per rollout batch.
    weighting: chain run once per optimiser step on its whole minibatch; contains
      exactly one reduction and may read `rollout.current`.
    """

    loss_fn: LossFn
    weighting: AdvantageTransform
    advantage: AdvantageTransform = dataclasses.field(default_factory=chain)

    def __post_init__(self):
        check.function("loss_fn of Term", self.loss_fn, "now, credit, rollout")
        for name in ("weighting", "advantage"):
            transform = vars(self)[name]
            check.kind(f"{name} of Term", transform, AdvantageTransform, "token_mean()")


class Algorithm(NamedTuple):
    """What the update needs to know of a method; made by `algorithm`.

    init: () -> state.
    credit: (rollout, state) -> (credits, state, metrics), once per rollout batch.
    weigh: (credits, minibatch, state) -> (credits, state, metrics), per optimiser step.
    loss: (now, credits, minibatch) -> f32[], a plain sum over tokens and terms.
    """

    init: Callable[[], Any]
    credit: Callable[[Rollout, Any], tuple[tuple[Credit, ...], Any, dict]]
    weigh: Callable[[tuple[Credit, ...], Rollout, Any], tuple]
    loss: Callable[[TokenStats, tuple[Credit, ...], Rollout], jax.Array]


class AlgorithmState(NamedTuple):
    """One state per term for its advantage chain and one for its weighting chain."""

    advantage: tuple
    weighting: tuple


def start(rollout: Rollout) -> Credit:
    """The credit every chain starts from: reward, mask, all verified rows members.

    Without a verdict (supervised terms) the reward is 1. Rows whose verifier failed,
    and those without any token (of groups that are short), are no members and weigh
    nothing.
    """
    mask = rollout.samples.mask
    try:
        reward, valid = rollout.verdict.reward, ~rollout.verdict.failed
    except NotMeasured:
        reward = jnp.ones(mask.shape[:2], jnp.float32)
        valid = jnp.ones(mask.shape[:2], bool)
    valid &= jnp.any(mask, -1)
    return Credit(
        advantage=reward.astype(jnp.float32)[..., None],
        weight=(mask & valid[..., None]).astype(jnp.float32),
        member=valid[..., None],
    )


def algorithm(**terms: Term) -> Algorithm:
    """An algorithm from named terms; a term's name prefixes its metrics.

    Raises:
      ValueError: without terms; and, when traced, if a weighting contains no reduction.
    """
    if not terms:
        raise ValueError("algorithm needs at least one term, got none; pass name=Term.")
    for name, term in terms.items():
        check.kind(f"term {name!r}", term, Term, "Term(nll(), token_mean())")
    names, parts = tuple(terms), tuple(terms.values())

    def run(transforms, credits, states, rollout):
        done = [
            t.update(c.replace(metrics={}), s, rollout)
            for t, c, s in zip(transforms, credits, states, strict=True)
        ]
        credits = tuple(c for c, _ in done)
        metrics = {
            f"{name}/{key}": value
            for name, c in zip(names, credits, strict=True)
            for key, value in c.metrics.items()
        }
        credits = tuple(c.replace(metrics={}) for c in credits)
        return jax.lax.stop_gradient(credits), tuple(s for _, s in done), metrics

    def init():
        return numerics.strong(
            AlgorithmState(
                tuple(t.advantage.init() for t in parts),
                tuple(t.weighting.init() for t in parts),
            )
        )

    def credit(rollout, state):
        credits = (start(rollout),) * len(parts)
        transforms = [t.advantage for t in parts]
        made, new, metrics = run(transforms, credits, state.advantage, rollout)
        if isinstance(rollout.verdict, Missing):
            for name, t, s in zip(names, transforms, state.advantage, strict=True):
                _require_no_reward(name, t, s, rollout)
        return made, state._replace(advantage=new), metrics

    def weigh(credits, rollout, state):
        transforms = [t.weighting for t in parts]
        credits, new, metrics = run(transforms, credits, state.weighting, rollout)
        for name, c in zip(names, credits, strict=True):
            if not c.reduced:
                raise ValueError(
                    f"term {name!r} needs exactly one reduction, its weighting has"
                    " none; add token_mean() or another reduction to it."
                )
        return credits, state._replace(weighting=new), metrics

    def loss(now, credits, rollout):
        total = jnp.zeros((), jnp.float32)
        for term, c in zip(parts, credits, strict=True):
            value = term.loss_fn(now, c, rollout)
            total += jnp.sum(jnp.where(c.weight > 0, c.weight * value, 0.0))
        return total

    return Algorithm(init, credit, weigh, loss)


def _require_no_reward(name: str, transform, state, rollout: Rollout) -> None:
    # Without a verdict every reward is 1, and a baseline makes an advantage of 0 of it.
    credit = start(rollout)

    def made(reward):
        got, _ = transform.update(credit.replace(advantage=reward), state, rollout)
        return jnp.zeros(()) if got.advantage is reward else got.advantage

    # Mapping shows what depends on the reward: asking for it unmapped raises.
    try:
        jax.eval_shape(jax.vmap(made, out_axes=None), credit.advantage[None])
    except ValueError as error:
        raise ValueError(
            f"term {name!r} needs a verdict, as its advantage is made of the reward,"
            " got a rollout without one; pass verify to the loop, such as"
            " loop.fused(act, learner, verify)."
        ) from error


def reads_current(algorithm: Algorithm, credits, rollout: Rollout, state) -> bool:
    """Whether the weighting reads the current policy's statistics; found by tracing."""
    blind = rollout.replace(current=Rollout.__dataclass_fields__["current"].default)
    try:
        jax.eval_shape(algorithm.weigh, credits, blind, state)
    except NotMeasured as missing:
        if missing.name != "current":
            raise
        return True
    return False
