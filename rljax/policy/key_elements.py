"""SEFE's RegLoRA: a new task's adapters leave alone what earlier tasks moved most.

After a task, the largest entries of each product A B are remembered and the adapters
are merged. The next task's optimiser is given a penalty on these entries:

    keys = key_elements(adapters)                    # after a task; then lora.merged
    penalty = lambda params: 2500 * key_penalty(params, keys)
    optimizer = optax.chain(rate.add_gradient_of(penalty), optax.adamw(1e-5))

Source: SEFE, arXiv:2505.02486; code jinpeng0528/SEFE (PAPER, code). Products are not
  scaled. Kernels are [in, out] here and [out, in] there, which changes no entry.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from rljax import check
from rljax.policy.lora import A, B

Keys = dict[str, jax.Array]
"""i32[L, K] flat places in each layer's product [in, out], by path of the module."""


def key_elements(adapters: Any, *, share: float = 0.02) -> Keys:
    """The places of the largest |A B| of each adapted matrix, the largest first.

    Args:
      adapters: a tree with `lora_a` and `lora_b`; others in it are not read.
      share: of the entries of a matrix, in (0, 1]; rounded down.
    """
    check.number("share", share, above=0, high=1)

    def largest(product):
        flat = jnp.abs(product).reshape(product.shape[0], -1)
        return jax.lax.top_k(flat, int(share * flat.shape[1]))[1]

    return {name: largest(product) for name, product in _products(adapters).items()}


def joined_keys(tasks: Sequence[Keys]) -> Keys:
    """The places of several tasks; those of more than one count as often."""
    return {
        name: jnp.concatenate([keys[name] for keys in tasks], -1) for name in tasks[0]
    }


def key_penalty(adapters: Any, keys: Keys) -> jax.Array:
    """f32[]: mean over matrices of the mean |A B| at their key places.

    Args:
      adapters: of the new task; the gradient goes through both factors.
      keys: of earlier tasks.
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
