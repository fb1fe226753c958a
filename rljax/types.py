"""The core types: what flows from sampler to verifier to update.

Symbols: `P` prompts, `G` samples per prompt, `T` completion tokens, `S` prompt tokens.
Every array of a `Rollout` begins with `P`, so a minibatch of prompts is a `Rollout`
too: `layout.take(rollout, rows)`. Log-probabilities and entropies are in nats, lengths
in tokens; log-probabilities, rewards and credit are float32, masks are bool.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, TypeGuard, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp

from rljax import metric


class NotMeasured(ValueError):
    """Raised when code reads a statistic that nothing in this run measures."""

    def __init__(self, name: str, supplier: str):
        super().__init__(f"`{name}` was read but not measured; {supplier}.")
        self.name = name


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Missing:
    """The placeholder of a statistic that was not measured; any use of it raises.

    A pytree node without leaves, so it passes through `jit`, `scan` and `vmap`.
    """

    name: str
    supplier: str

    def __getattr__(self, attribute: str):
        if attribute.startswith("__"):  # copy, pickle and jax look for protocols
            raise AttributeError(attribute)
        raise NotMeasured(self.name, self.supplier)

    def _read(self, *_):
        raise NotMeasured(self.name, self.supplier)

    # Operators are looked up on the class, past __getattr__.
    __jax_array__ = __array__ = __getitem__ = __bool__ = __neg__ = __abs__ = _read
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _read
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _read
    __lt__ = __le__ = __gt__ = __ge__ = _read


Value = TypeVar("Value")


def is_measured(value: Value | Missing) -> TypeGuard[Value]:
    """Whether a statistic was measured; this check itself never raises."""
    return not isinstance(value, Missing)


class _Replaceable:
    def replace(self, **changes) -> Self:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore

    def without(self, *names: str) -> Self:
        """A copy in which the named statistics are `Missing` again."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}  # type: ignore
        for name in names:
            if is_measured(defaults.get(name)):
                known = [k for k, v in defaults.items() if not is_measured(v)]
                raise ValueError(
                    f"without takes statistics that may be missing, {known}, got"
                    f" {name!r}; use `replace` for other fields."
                )
        return self.replace(**{name: defaults[name] for name in names})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def _core_type(cls):
    return jax.tree_util.register_dataclass(
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    )


def _missing(name: str, supplier: str):
    return dataclasses.field(default=Missing(name, supplier))


@_core_type
class TokenStats(_Replaceable):
    """Statistics of given tokens under one policy.

    logp: f32[P, G, T] log-probability of each token, nats.
    entropy: f32[P, G, T] entropy of the policy's distribution at each token, nats.
    extra: further statistics that a measure function returns, by name, each
      [P, G, T, ...].
    row_extra: further statistics of whole samples, by name, each [P, G, ...] without a
      token axis.
    """

    logp: jax.Array
    entropy: jax.Array | Missing = _missing(
        "entropy", "use a measure function that returns entropies"
    )
    extra: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    row_extra: dict[str, jax.Array] = dataclasses.field(default_factory=dict)


@_core_type
class Prompts(_Replaceable):
    """A batch of prompts, right-padded; the only part of a rollout without a G axis.

    tokens: i32[P, S] token ids; padding after `length` tokens is never read.
    length: i32[P] prompt length, tokens, at least 1.
    id: i32[P] the prompt's identity in its data set; keys its samples' randomness.
    data: arrays [P, ...] by name. Add your own under any other name. The library reads:

      answer            u8[P, A]       reference answer, zero-padded UTF-8: verifiers
      completion        i32[P, T]      one demonstration: supervised terms
      completion_mask   bool[P, T]       its tokens, the end token included
      answers           i32[P, A, T]   several stored answers: mixed groups
      answers_mask      bool[P, A, T]    their tokens; an empty row holds no answer
      answers_source    i32[P, A]        where each comes from, one of `Source`
      solution          i32[P, H]      a solution, revealed in part: hints
      solution_ends     i32[P, N]        where its N pieces end, tokens
      hint_length       i32[P]           how much of the solution is revealed, tokens
      privileged        i32[P, S']     the prompt that a privileged teacher reads
      privileged_length i32[P]           its length, tokens
      weight            f32[P]         weight of the demonstration: `gcsl`
      aside             Prompts        P other prompts: learn.consistency
    """

    tokens: jax.Array
    length: jax.Array
    id: jax.Array
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


class Source:
    """Where a sample came from: values of `Samples.source`."""

    OWN, GREEDY, DEMONSTRATION, TEACHER = range(4)


@_core_type
class Samples(_Replaceable):
    """Completions: G samples of each prompt.

    tokens: i32[P, G, T] token ids. Outside the mask an invalid id is read as token 0.
    mask: bool[P, G, T] the loss mask: tokens that the policy chose (or should have
      chosen, in a demonstration), the end token included. The sampler makes it. It may
      have holes (tool output). Attention does not read it.
    source: i32[P, G] one of `Source`.
    finished: bool[P, G] the completion ended by itself; it was not cut at T tokens.
    behaviour: statistics of the distribution that the tokens were really drawn from,
      after top-k and top-p; `extra["kept_mass"]` is the probability that these kept.
    decode_steps: f32[P, G] decode steps spent on the batch, divided evenly over its
      samples. Compare with `length - 1`: the first token comes from the prompt.
    environment: the final states of the rows' environments, a pytree of [P, G, ...].
    """

    tokens: jax.Array
    mask: jax.Array
    source: jax.Array
    finished: jax.Array
    behaviour: TokenStats | Missing = _missing(
        "samples.behaviour", "only a sampler supplies it, demonstrations have none"
    )
    decode_steps: jax.Array | Missing = _missing(
        "samples.decode_steps", "only a sampler supplies it"
    )
    environment: Any = _missing(
        "samples.environment", "sample with an environment: sampler(environment=...)"
    )

    @property
    def length(self) -> jax.Array:
        """i32[P, G] number of tokens under the mask."""
        return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)


@_core_type
class Verdict(_Replaceable):
    """The verifier's judgement of each sample.

    reward: f32[P, G] the verifier's reward; reward shaping changes only the advantage.
    correct: bool[P, G] the sample solves its prompt; pass rates read this.
    failed: bool[P, G] the verifier itself failed (raised, hung). Such rows are counted
      and left out of statistics and loss.
    """

    reward: jax.Array
    correct: jax.Array
    failed: jax.Array

    @classmethod
    def binary(cls, correct: jax.Array) -> "Verdict":
        """The verdict of a verifier that never fails: reward 1 if correct, else 0."""
        return cls(
            reward=correct.astype(jnp.float32),
            correct=correct,
            failed=jnp.zeros_like(correct),
        )


@_core_type
class Rollout(_Replaceable):
    """A batch of samples with everything measured of them; a minibatch is one, too.

    prompts, samples, verdict: see their types.
    old: statistics of the sampling policy, before top-k and top-p.
    reference, teacher: statistics of a reference policy and of a teacher, on the same
      tokens.
    current: statistics of the policy being updated, under stop-gradient; only
      `weighting` chains may read them.
    origin: u32[P] fingerprint of `old` and of the parameters it was measured with. The
      update uses `old` as `current` only if the fingerprint matches; otherwise it
      measures `current`.
    version: i32[P] training steps that the sampling policy had taken.
    """

    prompts: Prompts
    samples: Samples
    verdict: Verdict | Missing = _missing(
        "verdict", "a verifier supplies it; supervised terms do not need one"
    )
    old: TokenStats | Missing = _missing(
        "old", "a sampler supplies it; for demonstrations measure it first"
    )
    reference: TokenStats | Missing = _missing(
        "reference", "start the run with reference parameters in TrainState.reference"
    )
    teacher: TokenStats | Missing = _missing(
        "teacher", "pass a teacher to the actor of the loop"
    )
    current: TokenStats | Missing = _missing(
        "current",
        "only `weighting` chains may read it; a loss function is given `now`, an"
        " advantage chain reads `old`",
    )
    origin: jax.Array | Missing = _missing(
        "origin", "the actor of the loop supplies it"
    )
    version: jax.Array | Missing = _missing(
        "version", "only a decoupled loop supplies it; in others it equals the step"
    )


@_core_type
class Credit(_Replaceable):
    """How hard each sampled token is pushed up or down: the coefficient field.

    advantage: f32[P, G, 1 or T] starts as the reward.
    weight: f32[P, G, T] >= 0, the token's share of the loss; starts as the mask.
    member: bool[P, G, 1] rows that count in the statistics of their group.
    metrics: scalars by name. A plain number is averaged over optimiser steps; a
      `metric.Metric` says how it adds up.
    reduced: whether a reduction has turned `weight` into shares of a mean (static).
    """

    advantage: jax.Array
    weight: jax.Array
    member: jax.Array
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    reduced: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def weighs(self) -> jax.Array:
        """bool[P, G, T]: tokens with nonzero weight; NaN counts, so that it shows."""
        return self.weight != 0

    def log(self, **metrics) -> "Credit":
        """A copy with these metrics added; a plain number becomes a `metric.Mean`."""
        new = {name: metric.as_float32(value) for name, value in metrics.items()}
        return self.replace(metrics={**self.metrics, **new})


LossFn = Callable[[TokenStats, Credit, Rollout], jax.Array]


def measured_extra(
    stats: TokenStats | Missing, owner: str, name: str, supplier: str
) -> jax.Array:
    """`stats.extra[name]`, [P, G, T, ...].

    Args:
      owner: the field of the rollout that `stats` is, for the message.
      supplier: how to get it measured, for the message.

    Raises:
      NotMeasured: if it was not measured.
    """
    if name not in stats.extra:
        raise NotMeasured(f"{owner}.extra[{name!r}]", supplier)
    return stats.extra[name]


def old_value(rollout: Rollout) -> jax.Array:
    """f32[P, G, T]: the sampling policy's value estimates, each before its token."""
    supplier = (
        "samplers return no values: pass the actor measure_old, the measure function of"
        " a policy with a value head"
    )
    return measured_extra(rollout.old, "old", "value", supplier)


@_core_type
class TrainState(_Replaceable):
    """The complete device state of a run; checkpoints store it whole.

    params: the policy's trained parameters.
    optimizer, algorithm, gate: states of the optax optimiser, algorithm and gate.
    reference: parameters of the reference policy, or None when nothing reads one.
    frozen: the parameters that are not trained. Policies read them merged with `params`
      (or with `reference`). None if all are trained. See `policy.frozen`.
    key: the run's PRNG key. It never changes: step keys are folded from it.
    step: i32[] training steps (rollout batches) done.
    ahead: rollouts sampled but not yet learned from, oldest first; None in a coupled
      loop. See `decoupled`.
    """

    params: Any
    optimizer: Any
    algorithm: Any
    gate: Any
    key: jax.Array
    step: jax.Array
    reference: Any = None
    frozen: Any = None
    ahead: Any = None


Verify = Callable[[Prompts, Samples], Verdict]
"""(prompts, samples) -> Verdict: a verifier, in the graph or on the host."""

Sampler = Callable[[Any, Prompts, Any], tuple[Samples, TokenStats | Missing]]
"""(params, prompts, key of the step) -> (samples, their `Rollout.old`): a sampler."""


class Measure(Protocol):
    """(params, prompts, samples, reference) -> TokenStats of the samples' tokens.

    `reference` is `TrainState.reference`. Only measure functions that compare two
    policies read it.
    """

    def __call__(
        self, params: Any, prompts: Prompts, samples: Samples, reference: Any = None, /
    ) -> TokenStats: ...


def require(data: Mapping[str, Value], name: str, how: str) -> Value:
    """`data[name]`, from `prompts.data`.

    Args:
      data: the `data` of some prompts.
      name: a key of the table in `Prompts`.
      how: how to add it, an imperative clause for the message.

    Raises:
      ValueError: if the key is missing.
    """
    if name not in data:
        raise ValueError(f"prompts.data must hold {name!r}, got {sorted(data)}; {how}.")
    return data[name]


def require_stored_answers(prompts: Prompts, reader: str) -> None:
    """Raises ValueError, when traced, unless the prompts carry stored answers.

    Args:
      reader: start of the message, with a verb: "stored_answers() reads".
    """
    if "answers" not in prompts.data and "completion" not in prompts.data:
        raise ValueError(
            f'{reader} stored answers: prompts.data["answers"] i32[P, A, T] with'
            ' "answers_mask" and "answers_source", or ["completion"] i32[P, T] with'
            f' "completion_mask"; the prompts carry {sorted(prompts.data)}; add them to'
            " the data set."
        )
