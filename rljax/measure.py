"""Measure functions that need more than the policy's parameters.

A learner's measure is `(params, prompts, samples) -> TokenStats`. One that also reads
the reference's parameters, or a perturbation of the parameters, is made anew from state
and rollout at every training step and then serves all its optimiser steps.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from rljax import update
from rljax.advantage.algebra import Algorithm
from rljax.policy import score
from rljax.policy.base import Policy
from rljax.types import NotMeasured, Rollout, TokenStats, TrainState

MakeMeasure = Callable[[TrainState, Rollout], update.Measure]


def remeasuring_learner(
    make_measure: MakeMeasure,
    algorithm: Algorithm,
    optimizer: optax.GradientTransformation,
    **sizes,
) -> update.Learner:
    """A learner whose measure function is made at the start of each training step.

    Args:
      make_measure: (state, rollout batch) -> measure; may compute, under no gradient.
      algorithm, optimizer, **sizes: as `update.learner` takes them.
    """

    def build(measure):
        return update.learner(measure, algorithm, optimizer, **sizes)

    def learn(state, rollout):
        return build(make_measure(state, rollout)).learn(state, rollout)

    return update.Learner(build(_not_yet).init, learn)


def _not_yet(params, prompts, samples):
    raise ValueError("this measure function exists only within a training step.")


def anchored(policy: Policy, *, num_chunks: int = 1) -> MakeMeasure:
    """Measures also KL(reference || policy) over the whole vocabulary, per position.

    `extra["kl_reference"]` f32[P, G, T], nats: the forward KL that ASFT's anchor is. The
    reference's forward runs in the learner, so that its logits never travel.

    Args:
      policy: what is trained; the reference has its architecture and its parameters are
        `TrainState.reference`.
      num_chunks: pieces of the tokens whose logits, of both, exist at once.

    Raises:
      NotMeasured: when traced, if the state has no reference parameters.
    """

    def make(state, rollout):
        del rollout
        if state.reference is None:
            raise NotMeasured(
                'extra["kl_reference"]',
                "start the run with reference parameters: init(params, key, reference)",
            )

        def stats(params):
            def per_token(states, anchor, tokens):
                logits = jax.nn.log_softmax(policy.logits(params, states))
                base = jax.lax.stop_gradient(
                    jax.nn.log_softmax(policy.logits(state.reference, anchor))
                )
                entropy = -jnp.sum(jnp.exp(logits) * logits, -1)
                chosen = jnp.arange(logits.shape[-1]) == tokens[..., None]
                logp = jnp.sum(jnp.where(chosen, logits, 0.0), -1)
                return logp, entropy, forward_kl(base, logits)

            return per_token

        def measure(params, prompts, samples):
            states = policy.hidden(params, prompts, samples)
            anchor = policy.hidden(state.reference, prompts, samples)
            logp, entropy, kl = score.by_chunks(
                stats(params), num_chunks, states, anchor, samples.tokens
            )
            return TokenStats(logp=logp, entropy=entropy, extra={"kl_reference": kl})

        return measure

    return make


def forward_kl(reference: jax.Array, policy: jax.Array) -> jax.Array:
    """KL(reference || policy) f32[...] from log-probabilities [..., V], nats."""
    return jnp.sum(jnp.exp(reference) * (reference - policy), -1)
