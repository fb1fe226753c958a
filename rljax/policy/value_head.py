"""A value head on a policy: a critic with one number per token."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rljax import check
from rljax.policy import score
from rljax.policy.base import Policy


def with_value_head(
    policy: Policy,
    *,
    d_model: int,
    max_logits: int = score.MAX_LOGITS,
    features_fn: Callable[[jax.Array], jax.Array] = lambda states: states,
) -> Policy:
    """The policy with params {"policy": ..., "value": {"kernel", "bias"}}.

    Its `measure` adds extra["value"] f32[P, G, T], linear in the final hidden states.
    The value at t belongs to the state before completion token t. The head starts at 0.
    Samplers return no values; to have them in `old`, pass this `measure` to
    `program.actor` as `measure_old`.

    Args:
      policy: the trunk; sampling from it does not change.
      d_model: width of its hidden states.
      max_logits: largest number of float32 logits to hold at once on each device.
      features_fn: hidden states -> features of the head. `jax.lax.stop_gradient` keeps
        the value loss from training the trunk.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")
    check.count("d_model", d_model)
    check.count("max_logits", max_logits)
    check.function("features_fn", features_fn, "states")

    def init(key):
        head = {
            "kernel": jnp.zeros(d_model, jnp.float32),
            "bias": jnp.zeros((), jnp.float32),
        }
        return {"policy": policy.init(key), "value": head}

    def measure(params, prompts, samples, reference=None):
        del reference
        trunk, head = params["policy"], params["value"]
        states = policy.hidden(trunk, prompts, samples)
        stats = score.token_stats(
            policy.logits,
            policy.logits_params(trunk),
            states,
            samples,
            max_logits=max_logits,
        )
        features = features_fn(states).astype(jnp.float32)
        value = features @ head["kernel"] + head["bias"]
        return stats.replace(extra={"value": value})

    def prefill(params, prompts):
        return policy.prefill(params["policy"], prompts)

    def hidden(params, prompts, samples):
        return policy.hidden(params["policy"], prompts, samples)

    def logits(params, states):
        return policy.logits(params["policy"], states)

    def decode_params(params):
        return policy.decode_params(params["policy"])

    def logits_params(params):
        return {"policy": policy.logits_params(params["policy"])}

    return policy._replace(
        init=init,
        prefill=prefill,
        hidden=hidden,
        logits=logits,
        measure=measure,
        decode_params=decode_params,
        logits_params=logits_params,
    )
