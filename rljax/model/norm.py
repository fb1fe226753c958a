"""RMSNorm, with a scale stored as it is or as its difference from 1."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.model.config import DecoderConfig


class Norm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * (offset + scale), in float32.

    Gemma stores scale - 1, so its offset is 1. The sum is not stored, because bfloat16
    would round away small differences from 1.
    """

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c, wide = self.config, x.astype(jnp.float32)
        initial = nn.initializers.constant(1 - c.norm_offset)
        scale = self.param("scale", initial, x.shape[-1:], jnp.float32)
        if c.norm_offset:
            scale = scale.astype(jnp.float32) + c.norm_offset
        square = jnp.mean(jnp.square(wide), -1, keepdims=True)
        return (wide * (jax.lax.rsqrt(square + c.norm_epsilon) * scale)).astype(c.dtype)
