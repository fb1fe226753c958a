"""LoRA: the laws of the factored form, by hand and against full fine-tuning."""

import functools

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xla

from rljax import keys
from rljax.policy import frozen, lora
from rljax.policy.lora import Lora

SPEC = Lora(rank=3, alpha=6, targets=("q", "v", "o", "down"))


@pytest.fixture(scope="module")
def case():
    """(policy, adapted policy, base, parameters whose adapters do something, rows)."""
    policy = fakes.decoder(num_layers=2)
    base = jax.jit(policy.init)(jax.random.key(0))
    params = lora.with_adapters(base, SPEC, jax.random.key(1))
    draw = np.random.default_rng(0)

    def move(path, x):
        new = jnp.asarray(0.1 * draw.normal(size=x.shape), jnp.float32)
        return new if path[-1].key == "lora_b" else x

    moved = jax.tree.map_with_path(move, params)
    return policy, lora.adapted(policy, SPEC), base, moved, fakes.rollout(2, 2, 5)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_merging_by_hand():
    # W = I, B A = [[.1, .2], [0, 0]], alpha 2, rank 1: W + 2 B A = [[1.2, .4], [0, 1]].
    # Kernels are [in, out], so all three are transposed. Without alpha it was 1.1, with
    # rank and scale swapped 1.05.
    module = {
        "kernel": jnp.eye(2)[None],
        "lora_a": jnp.array([[[0.2], [0.4]]]),
        "lora_b": jnp.array([[[0.5, 0.0]]]),
    }
    got = lora.merged({"layers": {"q": module}}, Lora(rank=1, alpha=2))
    want = np.array([[1.2, 0.4], [0, 1]]).T
    np.testing.assert_allclose(got["layers"]["q"]["kernel"][0], want, atol=1e-7)
    assert set(got["layers"]["q"]) == {"kernel"}


def test_matrices_of_single_experts_are_no_targets():
    layers = {
        "experts": {"down": {"kernel": jnp.ones((2, 4, 3, 5))}}
    }  # [L, E, in, out]
    spec = Lora(rank=1, alpha=1, targets=("down",))
    with pytest.raises(ValueError, match="'down', of which each expert has one"):
        lora.with_adapters({"layers": layers}, spec, jax.random.key(0))


def test_the_scale_is_over_the_rank_or_its_root():
    assert Lora(rank=16, alpha=32).scale == 2
    assert Lora(rank=16, alpha=32, rank_stabilised=True).scale == 8


def test_new_adapters_are_the_base_bit_for_bit(case):
    # A random B, or bfloat16 in between, would change the last bits.
    policy, adapted, base, _, rows = case
    new = lora.with_adapters(base, SPEC, jax.random.key(1))
    args = rows.prompts, rows.samples
    compiled = functools.partial(jax.jit, compiler_options=xla.AS_USERS)
    want = compiled(policy.measure)(base, *args)
    same(compiled(adapted.measure)(new, *args), want)
    same(lora.merged(new, SPEC), base)
    same(adapted.decode_params(new), policy.decode_params(base))
    assert float(jnp.std(new["layers"]["q"]["lora_a"])) > 0


def test_an_a_is_drawn_from_the_stream_of_its_matrix(case):
    # A key folded without a name is one that something else may draw with.
    got = case[3]["layers"]["o"]["lora_a"]
    number = lora.TARGETS.index("o")
    key = keys.stream(jax.random.key(1), keys.Stream.ADAPTER, number)
    bound = got.shape[1] ** -0.5
    want = jax.random.uniform(key, got.shape, jnp.float32, -bound, bound)
    np.testing.assert_array_equal(got, want)


def test_each_layer_and_matrix_has_an_a_of_its_own(case):
    # Equal ones would move alike.
    found = {n: m["lora_a"] for n, m in case[3]["layers"].items() if "lora_a" in m}
    assert set(found) == set(SPEC.targets)
    for a in found.values():
        assert float(jnp.min(jnp.abs(a[0] - a[1]))) > 0
        assert float(jnp.max(jnp.abs(a))) <= a.shape[1] ** -0.5
    assert not np.array_equal(found["q"], found["v"])


def test_the_factored_form_is_the_merged_one_to_rounding(case):
    policy, adapted, base, params, rows = case
    args = rows.prompts, rows.samples
    factored = jax.jit(adapted.measure)(params, *args)
    merged = jax.jit(policy.measure)(lora.merged(params, SPEC), *args)
    np.testing.assert_allclose(factored.logp, merged.logp, atol=2e-5)
    before = jax.jit(policy.measure)(base, *args)
    assert float(jnp.max(jnp.abs(factored.logp - before.logp))) > 0.05
    # Prompts, too, are read with adapters.
    first, _ = jax.jit(adapted.prefill)(params, rows.prompts)
    want, _ = jax.jit(policy.prefill)(lora.merged(params, SPEC), rows.prompts)
    np.testing.assert_allclose(first, want, atol=2e-5)


def test_gradients_are_those_of_the_whole_matrices_by_the_chain_rule(case):
    # With G = dL/dW at the merged weights: dL/dA = s G B^T, dL/dB = s A^T G.
    policy, adapted, _, params, rows = case
    trained, kept = frozen.split(params, lora.is_adapter)

    def loss(measure, params):
        return jnp.sum(measure(params, rows.prompts, rows.samples).logp)

    got = jax.jit(jax.grad(lambda t: loss(adapted.measure, frozen.joined(t, kept))))(
        trained
    )
    whole = jax.jit(jax.grad(lambda p: loss(policy.measure, p)))(
        lora.merged(params, SPEC)
    )
    assert set(got["layers"]) == set(SPEC.targets)
    for name in SPEC.targets:
        a, b = trained["layers"][name]["lora_a"], trained["layers"][name]["lora_b"]
        full = whole["layers"][name]["kernel"]
        want_a = SPEC.scale * full @ b.swapaxes(1, 2)
        want_b = SPEC.scale * a.swapaxes(1, 2) @ full
        found = got["layers"][name]
        np.testing.assert_allclose(found["lora_a"], want_a, rtol=2e-3, atol=2e-3)
        np.testing.assert_allclose(found["lora_b"], want_b, rtol=2e-3, atol=2e-3)


def test_a_bfloat16_base_stays_one_and_adapters_are_float32():
    base = {"layers": {"q": {"kernel": jnp.ones((2, 4, 4), jnp.bfloat16)}}}
    spec = Lora(rank=2, alpha=2, targets=["q"])
    params = lora.with_adapters(base, spec, jax.random.key(0))
    assert params["layers"]["q"]["lora_a"].dtype == jnp.float32
    assert lora.merged(params, spec)["layers"]["q"]["kernel"].dtype == jnp.bfloat16


def test_ranks_scales_and_targets_that_fit_nothing_are_refused():
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"targets": ()}, {"targets": ["x"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Lora(**{"rank": 2, "alpha": 4.0} | wrong)
    with pytest.raises(ValueError, match="there is no \\['v'\\]"):
        base = {"layers": {"q": {"kernel": jnp.ones((1, 2, 2))}}}
        lora.with_adapters(
            base, Lora(rank=1, alpha=1, targets=("q", "v")), jax.random.key(0)
        )
