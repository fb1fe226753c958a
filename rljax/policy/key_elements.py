"""SEFE's RegLoRA: a penalty on changing what earlier tasks changed most.

After each task the places of the largest entries of every product A B are remembered,
and the adapters are merged. While the next task is trained, entries of its own products
at these places are penalised:

    keys = key_elements(adapters)                    # after a task; then lora.merged
    penalty = lambda params: 2500 * key_penalty(params, keys)
    optimizer = optax.chain(rate.add_gradient_of(penalty), optax.adamw(1e-5))

Source: SEFE, arXiv:2505.02486; code jinpeng0528/SEFE (PAPER, code). Products are taken
  without LoRA's scale. Kernels are [in, out] here and [out, in] there; the entries are
  the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check
from rljax.policy.lora import A, B

Keys = dict[str, jax.Array]
"""i32[L, K] flat indices into each layer's product [in, out], by path of the module."""


def key_elements(adapters: Any, *, share: float = 0.02) -> Keys:
    """The places of the largest |A B| of each adapted matrix, the largest first.

    Args:
      adapters: a tree with `lora_a` and `lora_b`; other leaves are not read.
      share: fraction of a matrix's entries, in (0, 1]; their number is rounded down.
    """
    check.number("share", share, above=0, high=1)

    def largest(product):
        flat = jnp.abs(product).reshape(product.shape[0], -1)
        return jax.lax.top_k(flat, int(share * flat.shape[1]))[1]

    return {name: largest(product) for name, product in _products(adapters).items()}


def joined_keys(tasks: Sequence[Keys]) -> Keys:
    """The places of several tasks; a place of n tasks is contained n times."""
    return {
        name: jnp.concatenate([keys[name] for keys in tasks], -1) for name in tasks[0]
    }


def key_penalty(adapters: Any, keys: Keys) -> jax.Array:
    """f32[]: mean over matrices of the mean |A B| at their key places.

    Args:
      adapters: those of the new task; gradients flow through both factors.
      keys: places of earlier tasks.
    """
    means = [
        jnp.mean(
            jnp.take_along_axis(
                jnp.abs(product).reshape(product.shape[0], -1), keys[name], -1
            ),
            -1,
        )
        for name, product in _products(adapters).items()
    ]
    return jnp.mean(jnp.concatenate(means))


def _products(tree: Any, above: str = "") -> dict[str, jax.Array]:
    """A B f32[L, in, out] of each adapted module, by path."""
    if not isinstance(tree, dict):
        return {}
    if A in tree:
        return {above: tree[A] @ tree[B]}
    found = {}
    for name, value in tree.items():
        found |= _products(value, f"{above}/{name}" if above else name)
    return found
