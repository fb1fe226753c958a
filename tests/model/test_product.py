"""Products of narrow numbers: summed in float32, in both directions."""

import dataclasses
import re

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import DecoderConfig, decoder_policy, product

X = jax.random.normal(jax.random.key(0), (2, 3, 64))
W = jax.random.normal(jax.random.key(1), (64, 32))
PUSH = jax.random.normal(jax.random.key(2), (2, 3, 32))
NARROW = X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)


@pytest.mark.parametrize("axis", [0, 1])
def test_logits_of_narrow_numbers_are_not_rounded(axis):
    # bfloat16 products are exact in float32. A sum rounded to bfloat16 would differ by
    # half a percent.
    x, w = NARROW
    want = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    got = product.logits(x, w if axis == 0 else w.T, axis)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_gradients_are_those_of_the_plain_product(axis):
    def loss(fn):
        return lambda x, w: jnp.sum(fn(x, w).astype(jnp.float32) * PUSH)

    def ours(x, w):
        return product.logits(x, w if axis == 0 else w.T, axis)

    got = jax.grad(loss(ours), (0, 1))(*NARROW)
    want = jax.grad(loss(jnp.matmul), (0, 1))(*(y.astype(jnp.float32) for y in NARROW))
    for one, other in zip(got, want, strict=True):
        assert one.dtype == jnp.bfloat16
        scale = float(jnp.max(jnp.abs(other)))
        np.testing.assert_allclose(one.astype(jnp.float32), other, atol=0.01 * scale)


@pytest.mark.parametrize("outputs", [16, 64])
def test_no_gradient_widens_what_the_product_itself_does_not_widen(outputs):
    # XLA:CPU converts both factors of x^T y to float32, unless they lie as it reads
    # them: that product then takes four times as long. Versions of XLA that widen the
    # product itself widen all three.
    x, w = jnp.ones((96, 32), jnp.bfloat16), jnp.ones((32, outputs), jnp.bfloat16)

    def widened(fn):
        text = jax.jit(fn).lower(x, w).compile().as_text()
        dots = re.findall(r"f32\[[\d,]+\]\S* dot\((%?[\w.]+), (%?[\w.]+)\)", text)
        types = dict(re.findall(r"(%[\w.]+) = (\w+)\[", text))
        assert dots
        return any(types[name] == "f32" for dot in dots for name in dot)

    def loss(x, w):
        return jnp.sum(product.dense(x, w).astype(jnp.float32) ** 2)

    assert widened(jax.grad(loss, (0, 1))) == widened(product.dense)


def test_products_of_float32_are_those_of_flax():
    np.testing.assert_array_equal(product.dense(X, W), X @ W)
    np.testing.assert_array_equal(product.logits(X, W.T, 1), X @ W)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_in_bfloat16_sums_each_product_with_a_weight_in_float32(tied):
    # One product whose result is bfloat16 would run ten times slower on this CPU.
    config = DecoderConfig(
        vocab_size=16,
        num_layers=1,
        d_model=8,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        d_ff=8,
        tie_embeddings=tied,
        qkv_bias=True,
    )
    narrow = decoder_policy(dataclasses.replace(config, dtype=jnp.bfloat16))
    params = jax.jit(narrow.init)(jax.random.key(0))
    prompts = fakes.prompts(num_prompts=2)
    samples = fakes.rollout(num_prompts=2, num_samples=3, num_tokens=5).samples

    def loss(policy):
        return lambda p: jnp.sum(policy.measure(p, prompts, samples).logp)

    text = str(jax.make_jaxpr(jax.grad(loss(narrow)))(params))
    products = [line for line in text.splitlines() if "dot_general[" in line]
    weights = [line for line in products if "bf16[" in line.split("=")[0]]
    flat = [line for line in weights if line.split("=")[0].count(",") < 2]
    assert products and not flat
    got, want = (jax.jit(loss(p))(params) for p in (narrow, decoder_policy(config)))
    assert float(got) == pytest.approx(float(want), rel=0.02)
