"""Dense layers that also use the parameters that policy transforms put beside a kernel.

    kernel_scale [out]                the kernel holds integers, in units of this scale
    lora_a [in, r], lora_b [r, out]   a LoRA adapter; lora_b includes its scale

`rljax.policy.quantised` and `rljax.policy.lora` make these parameters.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from rljax.model import product

_BESIDE = {"kernel_scale", "lora_a"}


class Dense(nn.Dense):
    """`flax.linen.Dense` that applies a kernel scale and an adapter if it has them."""

    dot_general: Any = product.dense

    def __call__(self, x):
        params = self.variables.get("params", {})
        if _BESIDE.isdisjoint(params):
            return super().__call__(x)
        return apply(x, params, self.dtype)


def apply(x: jax.Array, params: Mapping[str, jax.Array], dtype) -> jax.Array:
    """The output [rows, out] of a dense layer for x [rows, in], in `dtype`."""
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
