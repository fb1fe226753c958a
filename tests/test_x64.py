"""With JAX_ENABLE_X64 nothing becomes float64: the library asks for its dtypes."""

import fakes
import jax
import jax.numpy as jnp
import optax
import pytest
import test_algorithm_laws as laws
from algorithm_cases import CASES

from rljax import update


def dtypes(tree):
    return [x.dtype for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", CASES)
def test_a_step_keeps_the_dtypes_of_its_state(name):
    # jnp.zeros(n), 1.0 * mask and jnp.mean(mask) are float64 there, and a loop whose
    # carry changes its type is a TypeError.
    case = CASES[name]
    with jax.enable_x64(True):
        learner = update.learner(
            update.ReferencedMeasure(fakes.bigram_measure),
            case.algorithm,
            optax.adam(1e-3),
            gate=case.gate,
            num_passes=2,
        )
        state = jax.eval_shape(
            lambda key: learner.init(laws.PARAMS, key, laws.REFERENCE),
            jax.random.key(0),
        )
        rows = laws.rollout(case)
        new, metrics = jax.eval_shape(learner.learn, state, rows)
        assert jnp.float64 not in dtypes(state)
        assert dtypes(new) == dtypes(state)
        assert set(dtypes(metrics)) == {jnp.dtype("float32")}
