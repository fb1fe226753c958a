"""With JAX_ENABLE_X64 nothing becomes float64: the library asks for its dtypes."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_program
from algorithm_cases import BY_FAMILY, CASES
from bigram_rollout import PARAMS, REFERENCE, rollout

from rljax.learn import update
from rljax.rollout.sample import sampler


def dtypes(tree):
    return [x.dtype for x in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", BY_FAMILY)
def test_a_step_keeps_the_dtypes_of_its_state(name):
    # There jnp.zeros(n), 1.0 * mask and jnp.mean(mask) are float64, and a loop whose
    # carry changes its type raises a TypeError.
    case = CASES[name]
    with jax.enable_x64(True):
        learner = update.learner(
            fakes.bigram_measure,
            case.algorithm,
            optax.adam(1e-3),
            num_passes=2,
        )
        state = jax.eval_shape(
            lambda key: learner.init(PARAMS, key, REFERENCE),
            jax.random.key(0),
        )
        rows = rollout(case)
        new, metrics = jax.eval_shape(learner.learn, state, rows)
        assert jnp.float64 not in dtypes(state)
        assert dtypes(new) == dtypes(state)
        assert set(dtypes(metrics)) == {jnp.dtype("float32")}


def test_a_fused_step_keeps_its_state_and_samples_as_without():
    # With noise in float64 the same key would draw other tokens.
    def run(enabled):
        with jax.enable_x64(enabled):
            program = tiny_program.program(tiny_program.Config(max_tokens=4))
            state, _ = jax.eval_shape(program.fused(), program.state, program.prompts)
            assert jnp.float64 not in dtypes((program.state, state))
            assert dtypes(state) == dtypes(program.state)
            draw = sampler(
                fakes.bandit(4, 4, 16, temperature=0.7),
                num_samples=3,
                max_tokens=4,
                stop_tokens=(),
                top_k=5,
            )
            logits = np.random.default_rng(0).normal(size=(4, 4, 16))
            params = {"logits": jnp.asarray(logits, jnp.float32)}
            samples, old = jax.jit(draw)(params, fakes.prompts(), jax.random.key(0))
            assert jnp.float64 not in dtypes((params, samples, old))
            return samples

    chex.assert_trees_all_close(run(True), run(False), atol=1e-5)
