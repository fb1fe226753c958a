"""RegLoRA's numbers. Factors are transposed here, so W[u, v] stands at [v, u]."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.policy import rate
from rljax.policy.key_elements import joined_keys, key_elements, key_penalty


def adapters(b, a):
    """Of one layer, from the paper's B [out, r] and A [r, in]."""
    b, a = (jnp.asarray(x, jnp.float32).T[None] for x in (b, a))
    return {"layers": {"q": {"lora_a": a, "lora_b": b}}}


OLD = adapters([[1, 0], [0, 2], [1, 1]], [[0.1, -0.2], [0.3, 0]])
NEW = adapters([[0.5, 0], [0, 0.1], [0, 0.2]], [[0.2, 0.4], [1, -1]])


def test_the_largest_entries_of_the_product():
    # B A = [[.1, -.2], [.6, 0], [.4, -.2]]; the largest two of six are (1, 0), (2, 0),
    # in [in, out] places 1 and 2.
    keys = key_elements(OLD, share=2 / 6)
    np.testing.assert_array_equal(keys["layers/q"], [[1, 2]])


def test_the_penalty_is_the_mean_size_at_these_places():
    # B A = [[.1, .2], [.1, -.1], [.2, -.2]]: (.1 + .2) / 2. Signed or of the largest
    # entries of its own it would be .2.
    keys = key_elements(OLD, share=2 / 6)
    penalty = key_penalty(NEW, keys)
    assert float(penalty) == pytest.approx(0.15)
    assert 2500 / 224 * float(penalty) == pytest.approx(1.674107, abs=1e-6)


def test_places_of_several_tasks_count_as_often_as_they_come():
    # Once (1, 0), twice (2, 0): (.1 + .2 + .2) / 3.
    both = joined_keys([key_elements(OLD, share=2 / 6), {"layers/q": jnp.array([[2]])}])
    assert float(key_penalty(NEW, both)) == pytest.approx(0.5 / 3)


def test_the_penalty_moves_both_factors_and_only_at_its_places():
    keys = {"layers/q": jnp.array([[1]])}  # B[1] . A[:, 0] = .1 * 1
    tx = optax.chain(
        rate.add_gradient_of(lambda p: 10 * key_penalty(p, keys)), optax.sgd(1.0)
    )
    zeros = jax.tree.map(jnp.zeros_like, NEW)
    moved, _ = tx.update(zeros, tx.init(NEW), NEW)
    module = moved["layers"]["q"]
    # d|BA|/dA[1, 0] = B[1, 1] = .1, d/dB[1, :] = A[:, 0] = (.2, 1).
    np.testing.assert_allclose(module["lora_a"][0], [[0, -1], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(
        module["lora_b"][0], [[0, -2, 0], [0, -10, 0]], atol=1e-6
    )
