"""The attention kernel of TPUs compiles for one, within a decoder and on a mesh."""

import jax
import jax.numpy as jnp
import pytest

from rljax import mesh
from rljax.model import DecoderConfig, decoder_policy
from rljax.plan import cost
from rljax.types import Prompts, Samples
from tpu import compile as tpu

pytestmark = pytest.mark.slow
P, G, S, T = 2, 2, 300, 4097


def scoring(attention, **sizes):
    """The gradient of scoring a decoder of one layer, compiled for 4 chips."""
    pytest.importorskip("libtpu")
    small = {"vocab_size": 256, "num_layers": 1, "d_model": 256, "d_ff": 256}
    small |= {"num_heads": 4, "num_kv_heads": 2, "head_dim": 64}
    config = DecoderConfig(**small | sizes, attention=attention, dtype=jnp.bfloat16)
    policy = decoder_policy(config)
    place = mesh.make(tpu.find_devices("v5e:2x2"), data=2, tensor=2)
    where = mesh.prompt_sharding(place)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    prompts = Prompts(
        tokens=array(jnp.int32, P, S),
        length=array(jnp.int32, P),
        id=array(jnp.int32, P),
    )
    samples = Samples(
        tokens=array(jnp.int32, P, G, T),
        mask=array(jnp.bool_, P, G, T),
        source=array(jnp.int32, P, G),
        finished=array(jnp.bool_, P, G),
    )

    def total(params, prompts, samples):
        return jnp.sum(policy.measure(params, prompts, samples).logp)

    params = jax.eval_shape(policy.init, jax.random.key(0))
    with mesh.using(place):
        step = jax.jit(jax.grad(total))
        with tpu._no_compilation_cache():
            return step.lower(params, prompts, samples).compile()


def test_splash_compiles_for_four_chips_and_holds_no_scores():
    made = scoring("splash")
    text = made.as_text()
    for kernel in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert kernel in text, kernel
    # A device's own scores would be 2 x 2 x 4,096^2 float32: 256 MiB.
    assert cost.compiled_memory(made)["temporaries"] < 128 * 2**20


def test_a_sliding_layer_compiles_beside_one_that_does_not():
    sizes = {"num_layers": 2, "unroll": 1, "window": 512, "sliding": (True, False)}
    text = scoring("splash", **sizes).as_text()
    assert "conditional" in text and "splash_mha_dkv" in text
