"""Learning from the Undesirable (LfU): SFT that keeps hidden states stable.

    L = L_SFT + lambda mean_{t, l} |sg[h] - h'|^2

h are the hidden states of all layers l; h' are those after an undesirable step, a step
that raises the loss on an independent batch. The regulariser depends on the model and
not on log-probabilities alone. So the measure functions here compute it and supply it
as `extra["consistency"]` f32[P, G, T], for a term to read.

A measure function and a learner of this file belong together. The learner makes the
undesirable step once per training step and passes it to the measure function in place
of reference parameters:

    states = probe.recorded(policy.measure)
    learner = update.learner(perturbed_measure(states), algorithms.lfu(), optimizer)
    learner = perturbing_learner(learner, states, mixed.stored_answers())

The independent batch is `prompts.data["aside"]`: further Prompts with stored answers,
which `with_aside` draws on the host.

Source: arXiv:2511.13052; code yunpal/LfU LLaMA-Factory train/sft/trainer.py (PAPER).
Variants: the paper's text perturbs a separate new adapter; its code, as here, the
  trained weights. The code compares states of the response tokens; here the states that
  predict them are compared, one position earlier. The code draws a perturbation per
  microbatch; here it is one per training step, so that microbatches add up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import check, keys, numerics
from rljax.layout import take
from rljax.learn.update import Learner
from rljax.policy.frozen import joined
from rljax.types import Measure, Prompts, Rollout, Sampler, Samples, TokenStats, require

States = Callable[[Any, Prompts, Samples], tuple[TokenStats, tuple[jax.Array, ...]]]
"""(params, prompts, samples) -> (statistics, [P, G, T, E] per layer)."""

SteerFn = Callable[[jax.Array], States]
"""vectors f32[L, E] -> the `States` function of the model steered by them."""


class Step(NamedTuple):
    """What is added to parameters; in place of reference parameters.

    tree: of trained parameters; frozen ones are not in it.
    """

    tree: Any

    def added_to(self, params: Any) -> Any:
        """The parameters with the step; those that it does not have stay."""

        def add(params, step):
            if not isinstance(step, dict):
                return params + step
            return params | {name: add(params[name], x) for name, x in step.items()}

        return add(params, self.tree)


def undesirable_step(grads, radius: jax.typing.ArrayLike):
    """radius * grads / |grads|, with the global norm; 0 if all gradients are 0."""
    scale = numerics.safe_divide(jnp.asarray(radius), optax.tree.norm(grads))
    return jax.tree.map(lambda g: g * scale, grads)


def mean_square(fixed, moved) -> jax.Array:
    """f32[P, G, T]: mean over layers and hidden units of (sg[fixed] - moved)^2.

    Args:
      fixed, moved: one array [P, G, T, E] per layer.
    """
    layers = [
        jnp.mean(jnp.square(jax.lax.stop_gradient(a) - b), -1, dtype=jnp.float32)
        for a, b in zip(fixed, moved, strict=True)
    ]
    return jnp.mean(jnp.stack(layers), 0)


def perturbed_measure(states_fn: States) -> Measure:
    """LfU(LoRA): h' are the states at the parameters plus the undesirable step.

    Gradients flow through h' only.

    Args:
      states_fn: `probe.recorded(policy.measure)` of a decoder.

    Returns:
      A measure function with `extra["consistency"]`, for `perturbing_learner`.
    """
    check.function("states_fn", states_fn, "params, prompts, samples")

    def measure(params, prompts, samples, reference=None):
        step = _require_step(reference)
        now, clean = states_fn(params, prompts, samples)
        _, moved = states_fn(step.added_to(params), prompts, samples)
        return _with_consistency(now, mean_square(clean, moved))

    return measure


def perturbing_learner(
    learner: Learner,
    states_fn: States,
    sample: Sampler,
    *,
    radius: jax.typing.ArrayLike = 0.1,
) -> Learner:
    """LfU(LoRA): the undesirable step moves the trained parameters.

    The step is radius g / |g|, where g is the gradient of the mean -log p of the aside
    batch at the start of the training step.

    Args:
      learner: made with `perturbed_measure(states_fn)` and an algorithm that has a term
        of `loss.consistency()`. With frozen parameters, such as the base of LoRA
        adapters, the step moves the trained ones only.
      states_fn: `probe.recorded(policy.measure)` of a decoder.
      sample: reads the aside batch's answers, `mixed.stored_answers()`.
      radius: length of the step.

    Returns:
      A learner; logs `consistency/aside_nll_nats`.

    Raises:
      ValueError: if an argument is out of range; when traced, if the prompts carry no
        aside batch.
    """
    check.kind("learner", learner, Learner, "update.learner(...)")
    nll = _aside_nll(states_fn, sample)
    check.number("radius", radius, above=0)

    def learn(state, rollout):
        loss, grads = jax.value_and_grad(nll)(state.params, state.frozen, rollout)
        step = Step(undesirable_step(grads, radius))
        state, metrics = _learn_against(step, learner, state, rollout)
        return state, metrics | {"consistency/aside_nll_nats": loss}

    return learner._replace(learn=learn)


class SteeringState(NamedTuple):
    """The state of LfU(RepS), stored as the algorithm's state.

    algorithm: the algorithm's own state.
    vectors: f32[L, E] undesirable directions, one per layer.
    optimizer: state of the vectors' optimiser.
    """

    algorithm: Any
    vectors: jax.Array
    optimizer: Any


def steered_measure(states_fn: States, steer_fn: SteerFn) -> Measure:
    """LfU(RepS): compares with the states of the model steered by undesirable vectors.

    Gradients flow through the clean states only; the steered states are constant. In
    `perturbed_measure` it is the other way round. Both are as in the authors' code.

    Args:
      states_fn: `probe.recorded(policy.measure)` of a decoder.
      steer_fn: `lambda vectors: probe.steered(states_fn, vectors, strength)`; the only
        published strength is 0.1.

    Returns:
      A measure function with `extra["consistency"]`, for `steering_learner`.
    """
    check.function("states_fn", states_fn, "params, prompts, samples")
    check.function("steer_fn", steer_fn, "vectors")

    def measure(params, prompts, samples, reference=None):
        vectors = _require_step(reference)
        now, clean = states_fn(params, prompts, samples)
        _, steered = steer_fn(vectors)(params, prompts, samples)
        return _with_consistency(now, mean_square(steered, clean))

    return measure


def steering_learner(
    learner: Learner,
    steer_fn: SteerFn,
    sample: Sampler,
    *,
    shape: tuple[int, int],
    vector_optimizer: optax.GradientTransformation,
) -> Learner:
    """LfU(RepS): the undesirable step adds vectors to the MLP outputs.

    There is one vector per layer; the vectors are kept for the whole run. Each training
    step first moves the vectors so that the mean -log p of the aside batch rises, then
    learns.

    Args:
      learner: made with `steered_measure(states_fn, steer_fn)` and an algorithm that
        has a term of `loss.consistency()`.
      steer_fn: as for `steered_measure`.
      sample: reads the aside batch's answers, `mixed.stored_answers()`.
      shape: (L, E), layers and width of the decoder.
      vector_optimizer: moves the vectors; the paper's is Adam with the policy's
        learning rate.

    Returns:
      A learner whose algorithm state is a `SteeringState`; logs
      `consistency/aside_nll_nats`.

    Raises:
      ValueError: as `perturbing_learner`.

    Variants: the released code compares clean states of the batch with steered states
      of the aside batch; here both belong to the same inputs (RECONSTRUCTED).
    """
    check.kind("learner", learner, Learner, "update.learner(...)")
    check.function("steer_fn", steer_fn, "vectors")
    check.function("sample", sample, "params, prompts, key")
    optimizer_type, example = optax.GradientTransformation, "optax.adam(1e-4)"
    check.kind("vector_optimizer", vector_optimizer, optimizer_type, example)
    _require_layers_and_width(shape)
    harder = _harder(steer_fn, sample, vector_optimizer)

    def init(params, key, reference=None, frozen=None):
        state = learner.init(params, key, reference, frozen)
        own = keys.stream(key, keys.Stream.STEERING)
        vectors = jax.random.normal(own, shape, jnp.float32)
        moments = vector_optimizer.init(vectors)
        return state.replace(algorithm=SteeringState(state.algorithm, vectors, moments))

    def learn(state, rollout):
        inner, vectors, moments = state.algorithm
        params = joined(state.params, state.frozen)
        (vectors, moments), loss = harder(vectors, moments, params, rollout)
        state, metrics = _learn_against(
            vectors, learner, state.replace(algorithm=inner), rollout
        )
        state = state.replace(
            algorithm=SteeringState(state.algorithm, vectors, moments)
        )
        return state, metrics | {"consistency/aside_nll_nats": loss}

    return learner._replace(init=init, learn=learn)


def _require_layers_and_width(shape: tuple[int, int]) -> None:
    if not isinstance(shape, tuple) or len(shape) != 2:
        check.refuse("shape", "be a pair (layers, width)", shape)
    for size in shape:
        check.count("shape", size)


def _harder(steer_fn: SteerFn, sample: Sampler, optimizer):
    """(vectors, moments, params, rollout) -> ((vectors, moments), loss before).

    The function moves the vectors by one step that raises the loss of the aside batch.
    """

    def step(vectors, moments, params, rollout):
        def harm(vectors):
            return -_aside_nll(steer_fn(vectors), sample)(params, None, rollout)

        loss, grads = jax.value_and_grad(harm)(vectors)
        updates, after = optimizer.update(grads, moments, vectors)
        old, new = (vectors, moments), (vectors + updates, after)
        # Refused as in the learner: one NaN would stay for the whole run.
        finite = numerics.stays_finite(old, new)
        return jax.tree.map(lambda o, n: jnp.where(finite, n, o), old, new), -loss

    return step


def _learn_against(step, learner: Learner, state, rollout: Rollout):
    """`learner.learn` with the undesirable step in place of reference parameters.

    `rollout.reference` was measured before and is not affected.
    """
    reference = state.reference
    state, metrics = learner.learn(state.replace(reference=step), rollout)
    return state.replace(reference=reference), metrics


def _require_step(reference):
    if reference is None:
        raise ValueError(
            "a measure function of learn.consistency needs an undesirable step, got"
            " None; wrap the learner in perturbing_learner or steering_learner."
        )
    return reference


def _with_consistency(now: TokenStats, consistency: jax.Array) -> TokenStats:
    return now.replace(extra={**now.extra, "consistency": consistency})


def _aside_nll(states_fn: States, sample: Sampler):
    """(params, frozen, rollout) -> f32[]: mean -log p of the aside batch's tokens."""
    check.function("states_fn", states_fn, "params, prompts, samples")
    check.function("sample", sample, "params, prompts, key")

    def nll(params, frozen, rollout):
        how = "draw an independent batch by data.stream(map_fn=with_aside(data_set))"
        aside = require(rollout.prompts.data, "aside", how)
        samples, _ = sample(params, aside, None)
        now, _ = states_fn(joined(params, frozen), aside, samples)
        return -numerics.masked_mean(now.logp, samples.mask)

    return nll


def with_aside(prompts: Prompts) -> Callable[[Prompts, np.random.Generator], Prompts]:
    """A `map_fn` for `data.stream` that adds an independent batch of the same size.

    Args:
      prompts: the data set to draw from, with stored answers; usually the one that the
        stream draws from.
    """
    check.kind("prompts", prompts, Prompts, "data.encode_prompts(...)[0]")

    def draw(batch, rng):
        rows = rng.integers(len(prompts.id), size=len(batch.id))
        return batch.replace(data={**batch.data, "aside": take(prompts, rows)})

    return draw
