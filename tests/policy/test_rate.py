"""Rates by layer and by name, and penalties, as parts of an optax chain."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.policy import rate

PARAMS = {
    "embed": {"embedding": jnp.ones((2, 2))},
    "layers": {"q": {"kernel": jnp.ones((3, 2, 2)), "bias": jnp.ones((3, 2))}},
}


def applied(transform, updates=PARAMS):
    return transform.update(updates, transform.init(PARAMS), PARAMS)[0]


def test_rates_fall_towards_the_input():
    np.testing.assert_allclose(rate.layer_decay(3, 0.5), [0.25, 0.5, 1])


def test_each_layer_has_its_rate_and_others_stay():
    got = applied(rate.scale_by_layer([0.25, 0.5, 1]))
    kernel, bias = got["layers"]["q"]["kernel"], got["layers"]["q"]["bias"]
    # Scaled along another axis, the numbers within a matrix would differ.
    np.testing.assert_allclose(kernel, np.ones((3, 2, 2)) * [[[0.25]], [[0.5]], [[1]]])
    np.testing.assert_allclose(bias, np.ones((3, 2)) * [[0.25], [0.5], [1]])
    np.testing.assert_array_equal(got["embed"]["embedding"], 1)


def test_after_adam_a_rate_counts():
    rates = rate.scale_by_layer([0.0, 0.5, 1])
    got = applied(optax.chain(optax.sgd(0.1), rates))["layers"]["q"]["bias"]
    np.testing.assert_allclose(got[:, 0], [0, -0.05, -0.1], atol=1e-7)


def test_rates_for_another_number_of_layers_are_refused():
    with pytest.raises(ValueError, match="each of the 3 layers, got 2"):
        applied(rate.scale_by_layer([1, 1]))


def test_rates_by_name():
    got = applied(rate.scale_by_name(lambda names: 2.0 if names[0] == "embed" else 1.0))
    np.testing.assert_array_equal(got["embed"]["embedding"], 2)
    np.testing.assert_array_equal(got["layers"]["q"]["bias"], 1)


def test_the_gradient_of_a_penalty_is_added():
    # d(5 sum b^2)/db = 10 b at b = 1.
    def penalty(params):
        return 5 * jnp.sum(params["layers"]["q"]["bias"] ** 2)

    got = applied(rate.add_gradient_of(penalty))
    np.testing.assert_allclose(got["layers"]["q"]["bias"], 11)
    np.testing.assert_allclose(got["embed"]["embedding"], 1)
