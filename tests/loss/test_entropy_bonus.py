"""The entropy bonus, exact and sampled.

Of pi = (.7, .2, .1), by hand: H = -sum pi log pi = .80181855 nats and dH/dlogit_j =
-pi_j (log pi_j + H).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from token_case import case

from rljax import loss, numerics

PI = np.array([0.7, 0.2, 0.1])


SLOPE = [-0.31160053, 0.16152387, 0.15007665]


def test_the_exact_bonus_and_its_gradient():
    def entropy(logits):
        return numerics.logp_and_entropy(logits, jnp.int32(0))[1]

    logits = jnp.log(jnp.asarray(PI))
    assert float(entropy(logits)) == pytest.approx(0.80181855, abs=1e-6)
    np.testing.assert_allclose(jax.grad(entropy)(logits), SLOPE, atol=1e-6)


def test_the_sampled_bonus_has_the_same_expected_gradient():
    # Differentiating the value log pi itself would give 0.
    def bonus(logits):
        logp = jax.nn.log_softmax(logits)[None, None]
        rows = case(np.ones((1, 3)))
        now = rows.rollout.current.replace(logp=logp)
        values = loss.entropy_bonus_sampled()(now, rows.credit, rows.rollout)
        return jnp.sum(jnp.asarray(PI) * values)

    value, grad = jax.value_and_grad(bonus)(jnp.log(jnp.asarray(PI)))
    assert float(value) == pytest.approx(-0.80181855, abs=1e-6)
    np.testing.assert_allclose(grad, -np.array(SLOPE), atol=1e-6)
