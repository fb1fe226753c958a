"""Learning from the Undesirable: hidden states that survive a step in a bad direction.

    L = L_SFT + lambda mean_{t, l} |sg[h] - h'|^2

h are the hidden states of all layers, h' those after an undesirable step, one that
raises the loss on an independent batch. The regulariser is a function of the model, not
of log-probabilities; the learners here measure it as
`extra["consistency"]` f32[P, G, T], so that it is a term like any other.

The independent batch is `prompts.data["aside"]`, Prompts of its own with stored
answers; `with_aside` draws it on the host.

Source: arXiv:2511.13052; code yunpal/LfU LLaMA-Factory train/sft/trainer.py (PAPER).
Variants: the paper's text perturbs a separate fresh adapter, its code the trained
  weights: here the code. It looks at states of the response tokens, here at the states
  that predict them, one position earlier. It draws a perturbation per micro-step, here
  one per training step, so that microbatches add up.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rljax import check, keys, numerics
from rljax.advantage.algebra import Algorithm
from rljax.learn import update
from rljax.model import probe
from rljax.policy.base import Policy
from rljax.rollout import mixed
from rljax.types import Measure, Prompts, Rollout


def undesirable_step(grads, radius: jax.typing.ArrayLike):
    """radius * grads / |grads|, the norm over all arrays together; 0 if grads are."""
    scale = numerics.safe_divide(jnp.asarray(radius), optax.tree.norm(grads))
    return jax.tree.map(lambda g: g * scale, grads)


def mean_square(fixed, moved) -> jax.Array:
    """f32[P, G, T]: mean over layers and units of (sg[fixed] - moved)^2.

    Args:
      fixed, moved: one array [P, G, T, E] per layer.
    """
    layers = [
        jnp.mean(jnp.square(jax.lax.stop_gradient(a) - b), -1, dtype=jnp.float32)
        for a, b in zip(fixed, moved, strict=True)
    ]
    return jnp.mean(jnp.stack(layers), 0)


def perturbing_learner(
    policy: Policy,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    *,
    radius: jax.typing.ArrayLike = 0.1,
    **sizes,
) -> update.Learner:
    """LfU(LoRA): a learner whose undesirable step is one in the trained parameters.

    delta = radius g / |g|, g the gradient of the mean -log p of the aside batch at the
    start of the training step; it is a constant, and the gradient of the consistency
    reaches the parameters through h' alone.

    Args:
      policy: a decoder; all its parameters are trained (of LoRA: the adapters).
      algorithm: with a term on `extra["consistency"]`.
      optimizer: of the parameters.
      radius: length of the step.
      **sizes: as `update.learner` takes them.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.number("radius", radius, above=0)
    measure_states = probe.recorded(policy.measure)

    def learner(delta):
        def measure(params, prompts, samples):
            now, clean = measure_states(params, prompts, samples)
            moved = jax.tree.map(jnp.add, params, delta)
            _, there = measure_states(moved, prompts, samples)
            extra = {**now.extra, "consistency": mean_square(clean, there)}
            return now.replace(extra=extra)

        return update.learner(measure, algorithm, optimizer, **sizes)

    def learn(state, rollout):
        loss, grads = jax.value_and_grad(aside_nll(policy.measure))(
            state.params, rollout
        )
        state, metrics = learner(undesirable_step(grads, radius)).learn(state, rollout)
        return state, metrics | {"consistency/aside_nll_nats": loss}

    return update.Learner(learner(None).init, learn)


class SteeringState(NamedTuple):
    """What RepS remembers, in the place of the algorithm's state.

    algorithm: the algorithm's own state.
    vectors: f32[L, E] undesirable directions, one per layer.
    optimizer: state of their optimiser.
    """

    algorithm: Any
    vectors: jax.Array
    optimizer: Any


def steering_learner(
    policy: Policy,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    *,
    shape: tuple[int, int],
    vector_optimizer: optax.GradientTransformation,
    strength: jax.typing.ArrayLike = 0.1,
    **sizes,
) -> update.Learner:
    """LfU(RepS): a learner whose undesirable step turns the MLP outputs.

    One vector per layer persists over the run. Each training step first moves the
    vectors to raise the mean -log p of the aside batch, then learns; the gradient
    reaches the parameters through the clean states, the steered ones are constant: the
    other side than in `perturbing_learner`, as in the code.

    Args:
      policy: a decoder.
      algorithm: with a term on `extra["consistency"]`.
      optimizer: of the parameters.
      shape: (L, E), layers and width of the decoder.
      vector_optimizer: of the vectors; Adam with the policy's learning rate.
      strength: how far MLP outputs are turned, see `probe.turned`.
      **sizes: as `update.learner` takes them.

    Variants: the released code compares clean states of the batch with steered states
      of the aside batch; here both are of the same inputs (RECONSTRUCTED).
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.number("strength", strength, above=0)
    check.kind(
        "vector_optimizer",
        vector_optimizer,
        optax.GradientTransformation,
        "optax.adam(1e-4)",
    )
    if not isinstance(shape, tuple) or len(shape) != 2:
        check.refuse("shape", "be a pair (layers, width)", shape)
    for size in shape:
        check.count("shape", size)
    update.learner(policy.measure, algorithm, optimizer, **sizes)  # for its checks
    measure_states = probe.recorded(policy.measure)

    def learner(vectors):
        def measure(params, prompts, samples):
            now, clean = measure_states(params, prompts, samples)
            run = probe.steered(measure_states, vectors, strength)
            _, there = run(params, prompts, samples)
            extra = {**now.extra, "consistency": mean_square(there, clean)}
            return now.replace(extra=extra)

        return update.learner(measure, algorithm, optimizer, **sizes)

    def init(params, key, reference=None):
        state = learner(None).init(params, key, reference)
        own = keys.stream(key, keys.Stream.STEERING)
        vectors = jax.random.normal(own, shape, jnp.float32)
        steering = SteeringState(
            state.algorithm, vectors, vector_optimizer.init(vectors)
        )
        return state.replace(algorithm=steering)

    def learn(state, rollout):
        inner, vectors, moments = state.algorithm

        def harm(vectors):
            run = probe.steered(policy.measure, vectors, strength)
            return -aside_nll(run)(state.params, rollout)

        loss, grads = jax.value_and_grad(harm)(vectors)
        updates, new = vector_optimizer.update(grads, moments, vectors)
        # As in any update: one NaN would stay for the whole run.
        old, new = (vectors, moments), (vectors + updates, new)
        finite = numerics.stays_finite(old, new)
        vectors, moments = jax.tree.map(lambda o, n: jnp.where(finite, n, o), old, new)
        state, metrics = learner(vectors).learn(state.replace(algorithm=inner), rollout)
        state = state.replace(
            algorithm=SteeringState(state.algorithm, vectors, moments)
        )
        return state, metrics | {"consistency/aside_nll_nats": -loss}

    return update.Learner(init, learn)


def aside_nll(measure_fn: Measure) -> Callable[[Any, Rollout], jax.Array]:
    """(params, rollout) -> f32[]: token mean of -log p over the aside batch, nats."""
    check.function("measure_fn", measure_fn, "params, prompts, samples")

    def nll(params, rollout):
        if "aside" not in rollout.prompts.data:
            raise ValueError(
                'learning from the undesirable reads prompts.data["aside"], an'
                " independent batch of Prompts; the prompts carry"
                f" {sorted(rollout.prompts.data)}; give the data stream"
                " map_fn=with_aside(data_set)."
            )
        aside = rollout.prompts.data["aside"]
        samples, _ = mixed.stored_answers()(params, aside, None)
        logp = measure_fn(params, aside, samples).logp
        return -numerics.masked_mean(logp, samples.mask)

    return nll


def with_aside(prompts: Prompts) -> Callable[[Prompts, np.random.Generator], Prompts]:
    """A `map_fn` of `data.stream`: an independent draw of equally many rows.

    Args:
      prompts: the data set to draw from, with stored answers; usually the same.
    """
    check.kind("prompts", prompts, Prompts, "data.encode_prompts(...)[0]")

    def draw(batch, rng):
        rows = rng.integers(len(prompts.id), size=len(batch.id))
        aside = jax.tree.map(lambda x: x[rows], prompts)
        return batch.replace(data={**batch.data, "aside": aside})

    return draw
