"""Parameters narrower than float32 move as float32 ones would."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax import advantage as adv
from rljax import loss
from rljax.learn import master_weights, update
from rljax.learn.gradient import of_minibatch
from rljax.learn.master_weights import MasterState
from rljax.learn.microbatch import Pieces

SHAPES = {"kernel": (64, 32), "scale": (32,)}


def tree(seed, size):
    draw = np.random.default_rng(seed)
    return {
        name: jnp.asarray(draw.normal(0, size, shape), jnp.float32)
        for name, shape in SHAPES.items()
    }


def steps(optimizer, params, num):
    """Parameters and state after so many steps on made-up gradients."""
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(num):
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), tree(i + 1, 1.0), params)
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def moved(before, after):
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return np.mean(np.concatenate([np.ravel(a != b) for a, b in pairs]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_steps_add_up_as_in_float32(dtype):
    # Ten AdamW steps of 1e-6 on the parameters themselves move less than 2 % of them.
    adamw = optax.adamw(1e-6)
    narrow = jax.tree.map(lambda x: x.astype(dtype), tree(0, 0.02))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), narrow)
    lost, _ = steps(adamw, narrow, 10)
    params, state = steps(master_weights.master_weights(adamw), narrow, 10)
    exact = master_weights.exact(params, state)
    assert moved(wide, exact) > 0.99
    assert dtype != jnp.bfloat16 or moved(narrow, lost) < 0.02
    # The same in float32, on gradients rounded to the narrow type, as the model's are.
    inner = adamw.init(wide)
    for i in range(10):
        grads = jax.tree.map(lambda g: g.astype(dtype), tree(i + 1, 1.0))
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        updates, inner = adamw.update(grads, inner, wide)
        wide = optax.apply_updates(wide, updates)
    chex.assert_trees_all_close(exact, wide, atol=1e-9)
    want = jax.tree.map(lambda x: x.astype(dtype), wide)
    chex.assert_trees_all_equal_dtypes(params, narrow)
    chex.assert_trees_all_close(params, want, atol=1e-9)


def test_many_small_steps_move_bfloat16_parameters():
    # 300 steps of about 1e-6 in one direction reach the next bfloat16 number and more.
    params = {"x": jnp.full(1000, 0.02, jnp.bfloat16)}
    optimizer = master_weights.master_weights(optax.sgd(1e-6))
    state, grads = optimizer.init(params), {"x": jnp.ones(1000, jnp.bfloat16)}
    for _ in range(300):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    start = float(jnp.bfloat16(0.02))
    np.testing.assert_allclose(params["x"].astype(jnp.float32), start - 3e-4, atol=7e-5)
    np.testing.assert_allclose(state.masters["x"], start - 3e-4, rtol=1e-5)


def test_of_float32_parameters_it_is_the_optimiser_itself():
    adam, params = optax.adam(0.1), tree(0, 0.02)
    wrapped = master_weights.master_weights(adam)
    chex.assert_trees_all_equal(wrapped.init(params), adam.init(params))
    chex.assert_trees_all_equal(steps(wrapped, params, 3), steps(adam, params, 3))


def test_only_narrow_parameters_have_copies():
    params = {"a": jnp.ones(3, jnp.bfloat16), "b": jnp.ones(3), "c": {"d": jnp.ones(2)}}
    optimizer = master_weights.master_weights(optax.adam(0.1))
    state = optimizer.init(params)
    assert isinstance(state, MasterState)
    assert state.masters == {"a": state.masters["a"], "b": None, "c": {"d": None}}
    assert {x.dtype.name for x in jax.tree.leaves(state.inner[0].mu)} == {"float32"}
    grads = jax.tree.map(jnp.ones_like, params)
    updates, after = jax.jit(optimizer.update)(grads, state, params)
    chex.assert_trees_all_equal_structs(after, state)
    new = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal_dtypes(new, params)
    np.testing.assert_allclose(after.masters["a"], new["b"], rtol=1e-6)


# In the learner.

POLICY = fakes.bandit(8, 4, 16)
ROWS = fakes.rollout(8, 4, 4).replace(prompts=fakes.prompts(8))
METHOD = adv.algorithm(
    policy=adv.Term(
        advantage=adv.center_by_group(),
        weighting=adv.token_mean(),
        loss_fn=loss.reinforce(),
    )
)


def start(dtype):
    draw = np.random.default_rng(5).normal(0, 0.5, (8, 4, 16))
    return {"logits": jnp.asarray(draw, dtype)}


def measure(params, prompts, samples, reference=None):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return POLICY.measure(params, prompts, samples)


def test_the_learner_moves_bfloat16_parameters_and_says_how_many():
    # A step of 1e-6 changes next to none of the numbers themselves: lost, were there no
    # copies. The share counts what the optimiser knows.
    method = adv.algorithm(
        policy=adv.Term(weighting=adv.constant_length(4), loss_fn=loss.entropy_bonus())
    )
    rows = fakes.rollout(8, 4, 4, length=np.full((8, 4), 4))
    rows = rows.replace(prompts=fakes.prompts(8))
    made = update.learner(measure, method, optax.adamw(1e-6))
    state = made.init(start(jnp.bfloat16), jax.random.key(0))
    learn = jax.jit(made.learn)
    for _ in range(3):
        state, metrics = learn(state, rows)
        assert metrics["update/moved_share"] > 0.99
        assert metrics["update/refused"] == 0
    assert state.params["logits"].dtype == jnp.bfloat16
    step = state.optimizer.masters["logits"] - start(jnp.bfloat16)["logits"]
    np.testing.assert_allclose(jnp.abs(step), 3e-6, rtol=0.2)


def test_a_refused_step_leaves_the_copies_alone():
    made = update.learner(measure, METHOD, optax.adam(float("nan")))
    state = made.init(start(jnp.bfloat16), jax.random.key(0))
    after, metrics = jax.jit(made.learn)(state, ROWS)
    assert metrics["update/refused"] == 1
    chex.assert_trees_all_equal(after.optimizer, state.optimizer)


def test_gradients_of_pieces_add_up_in_float32():
    # Eight bfloat16 pieces summed in bfloat16 differ from the whole by 1e-2 of it.
    def gradient(num_micro, dtype):
        params = {"shared": jnp.asarray(start(jnp.float32)["logits"][0], dtype)}

        def shared(params, prompts, samples, reference=None):
            logits = jnp.broadcast_to(params["shared"].astype(jnp.float32), (8, 4, 16))
            return POLICY.measure({"logits": logits}, prompts, samples)

        made = update.learner(shared, METHOD, optax.sgd(1.0))
        state = made.init(params, jax.random.key(0))
        credits, _, _ = METHOD.credit(ROWS, state.algorithm)
        first = jnp.zeros((), bool)
        return of_minibatch(
            shared, METHOD, Pieces(num_micro), credits, ROWS, state, first
        ).grads

    got, want = (
        jax.jit(gradient, static_argnums=(0, 1))(8, jnp.dtype(dtype))["shared"]
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    assert got.dtype == jnp.float32
    scale = float(jnp.max(jnp.abs(want)))
    # Each of eight pieces is rounded once: to 2^-9 of itself.
    np.testing.assert_allclose(got, want, atol=2**-7 * scale)
