"""int8 rollouts: the rounding, its size, and that it is seen and corrected."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage, program
from rljax.advantage import importance
from rljax.policy import int8_decoding
from rljax.policy.quantised import int8
from rljax.rollout.sample import sampler
from rljax.types import TrainState


def test_int8_by_hand():
    # Channels are columns: the largest of each becomes 127. With one scale for all, the
    # first column would be 0, 1.
    kernel = jnp.array([[0.005, 12.7], [-0.01, 0.04]])
    numbers, scale = int8(kernel)
    assert numbers.dtype == jnp.int8
    np.testing.assert_array_equal(numbers, [[64, 127], [-127, 0]])
    np.testing.assert_allclose(scale, [0.01 / 127, 0.1], rtol=1e-6)


def test_rounding_is_at_most_half_a_step_and_zeros_stay():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 20, 7)), jnp.float32)
    kernel = kernel.at[1, :, 2].set(0)
    numbers, scale = int8(kernel)
    error = jnp.abs(numbers * scale[:, None] - kernel)
    assert bool(jnp.all(error <= 0.5001 * scale[:, None]))
    np.testing.assert_array_equal(numbers[1, :, 2], 0)


@pytest.mark.parametrize("biased", [False, True])
def test_decode_steps_read_int8_and_compute_the_dequantised_product(biased):
    policy = fakes.decoder(num_layers=2, qkv_bias=biased)
    params = jax.jit(policy.init)(jax.random.key(0))
    if biased:  # at 0, scaled by mistake, nobody would see
        params = jax.tree.map_with_path(
            lambda path, x: x + 0.3 if path[-1].key == "bias" else x, params
        )
    quantised = int8_decoding(policy)
    read = quantised.decode_params(params)
    kernels = [
        module["kernel"]
        for layer in read["layers"].values()
        for module in (m for m in layer.values() if "kernel" in m)
    ]
    assert {k.dtype.name for k in kernels} == {"int8"}
    assert read["embed"]["embedding"].dtype == jnp.float32

    def dequantise(tree):
        if not isinstance(tree, dict):
            return tree
        if "kernel_scale" in tree:
            rest = {k: v for k, v in tree.items() if k != "kernel_scale"}
            exact = tree["kernel"] * tree["kernel_scale"][..., None, :]
            return rest | {"kernel": exact}
        return {k: dequantise(v) for k, v in tree.items()}

    rows = fakes.prompts()
    _, prompt = jax.jit(policy.prefill)(params, rows)
    tokens = jnp.arange(8).reshape(4, 2)
    cache = policy.init_cache(prompt, 2, 4)
    decode = jax.jit(policy.decode)
    got, _ = decode(read, tokens, jnp.zeros(4, jnp.int32), prompt, cache)
    want, _ = decode(dequantise(read), tokens, jnp.zeros(4, jnp.int32), prompt, cache)
    np.testing.assert_allclose(got, want, atol=1e-4)
    exact, _ = decode(
        policy.decode_params(params), tokens, jnp.zeros(4, jnp.int32), prompt, cache
    )
    assert 1e-3 < float(jnp.max(jnp.abs(got - exact))) < 2


def test_old_is_exact_the_mismatch_is_reported_and_the_weights_correct_it():
    policy = fakes.decoder()
    sample = sampler(
        int8_decoding(policy), num_samples=4, max_tokens=4, stop_tokens=(1,)
    )
    params = jax.jit(policy.init)(jax.random.key(0))
    state = TrainState(
        params=params,
        optimizer=(),
        algorithm=(),
        gate=(),
        key=jax.random.key(0),
        step=jnp.int32(0),
    )
    act = program.actor(policy, sample, measure_old=policy.measure)
    rollout = jax.jit(act)(state, fakes.prompts())
    exact = jax.jit(policy.measure)(params, rollout.prompts, rollout.samples)
    mask = rollout.samples.mask
    np.testing.assert_allclose(rollout.old.logp[mask], exact.logp[mask], atol=1e-5)
    gap = importance.mismatch(rollout)
    # The first token is drawn from the prompt's pass, which is exact.
    np.testing.assert_allclose(gap[..., 0], 0, atol=1e-5)
    assert 1e-3 < float(jnp.max(jnp.abs(gap))) < 1
    credit = fakes.credit_of(rollout, np.ones((4, 4)))
    tis = advantage.chain(
        advantage.log_mismatch(),
        advantage.weigh_by_importance(),
    )
    credit, _ = tis.update(credit, rollout, tis.init())
    want = jnp.where(mask, jnp.minimum(jnp.exp(gap), 2.0), 0)
    np.testing.assert_allclose(credit.weight, want, rtol=1e-5)
    assert float(credit.metrics["mismatch/gap_max"].value) == pytest.approx(
        float(jnp.max(jnp.abs(gap))), rel=1e-5
    )
