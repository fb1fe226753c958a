"""Dense layers that read what policy transforms put beside their kernel.

    kernel_scale [out]                kernel holds integers, in steps of it
    lora_a [in, r], lora_b [r, out]   an adapter, its scale included

Nothing here makes these parameters: `rljax.policy.lora` and `.quantised` do.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from rljax.model import product

_BESIDE = {"kernel_scale", "lora_a"}


class Dense(nn.Dense):
    """flax's, whose parameters may hold more."""

    dot_general: Any = product.dense

    def __call__(self, x):
        params = self.variables.get("params", {})
        if _BESIDE.isdisjoint(params):
            return super().__call__(x)
        return apply(x, params, self.dtype)


def apply(x: jax.Array, params: Mapping[str, jax.Array], dtype) -> jax.Array:
    """A dense layer's output [rows, out] of x [rows, in], in `dtype`."""
    params = {k: v.astype(dtype) for k, v in params.items()}
    x = x.astype(dtype)
    y = product.dense(x, params["kernel"])
    if "kernel_scale" in params:
        y = y * params["kernel_scale"]
    if "bias" in params:
        y = y + params["bias"]
    if "lora_a" in params:
        y = y + product.dense(product.dense(x, params["lora_a"]), params["lora_b"])
    return y
