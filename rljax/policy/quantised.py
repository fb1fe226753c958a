"""Rollouts with int8 weights: a decode step reads a quarter of the bytes.

The sampler then draws from another distribution than the learner trains. So `old` is
measured with the exact weights, while `samples.behaviour` is the distribution that was
drawn from. `log_mismatch` reports the difference; an importance weight corrects it:

    act = program.actor(policy, sampler(int8_decoding(policy), ...),
                        measure_old=policy.measure)
    weighting = chain(token_mean(), log_mismatch(), weigh_by_importance())

This is plain absmax rounding. qwix does not fit: it quantises flax modules by wrapping
them, while the sampler reads weights that it has joined and cast itself.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rljax import check
from rljax.policy.base import Policy


def int8(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(i8[..., in, out], scale f32[..., out]) with kernel = i8 * scale, rounded.

    The scale of an output channel is its largest magnitude / 127.
    """
    kernel = kernel.astype(jnp.float32)
    largest = jnp.max(jnp.abs(kernel), axis=-2)
    scale = jnp.where(largest > 0, largest, 1.0) / 127
    return jnp.round(kernel / scale[..., None, :]).astype(jnp.int8), scale


def int8_decoding(policy: Policy) -> Policy:
    """The policy whose decode steps read the layers' matrices as int8.

    Scales multiply the products in the activations' dtype. Embeddings, norms and the
    output head stay exact. So does prefill, and with it each completion's first token.

    Args:
      policy: a decoder's policy, or a transform of one. Pass the result to the sampler
        only.
    """
    check.kind("policy", policy, Policy, "decoder_policy(config)")

    def decode_params(params):
        made = policy.decode_params(params)
        return {**made, "layers": _quantise(made["layers"])}

    return policy._replace(decode_params=decode_params)


def _quantise(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if "kernel" in tree:
        kernel, scale = int8(tree["kernel"])
        return {**tree, "kernel": kernel, "kernel_scale": scale}
    return {name: _quantise(value) for name, value in tree.items()}
