"""Windows, kinds of layers and experts, without any other library."""

import dataclasses

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import Experts, LongScaling, decoder_policy, rotary
from rljax.model.config import DecoderConfig
from rljax.rollout import sample

SIZES = {
    "vocab_size": 16,
    "num_layers": 3,
    "d_model": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "d_ff": 24,
    "initializer_std": 0.3,
}
# Each part of a family, in few layers; both kinds of layers stand side by side.
GEMMA = DecoderConfig(
    **SIZES,
    norms="both",
    norm_offset=1.0,
    qk_norm="head",
    window=3,
    sliding=(True, False, True),
    sliding_rope_theta=50.0,
    query_scalar=5.0,
    attention_cap=2.0,
    logit_cap=3.0,
    activation="gelu_tanh",
    scale_embeddings=True,
)
EXPERTS = DecoderConfig(
    **SIZES,
    norms="after",
    qk_norm="all",
    rotary_dim=4,
    unrotated=(False, True, False),
    experts=Experts(num=5, num_chosen=2, d_ff=12, shared_d_ff=8),
)
CONFIGS = {"gemma": GEMMA, "experts": EXPERTS}


@pytest.mark.parametrize(
    "name", ["gemma", pytest.param("experts", marks=pytest.mark.slow)]
)
def test_what_is_sampled_token_by_token_is_what_is_measured(name):
    # A window counted from the padded prompt, or a cache that forgets too late, would
    # part them at the first token beyond it.
    config = dataclasses.replace(CONFIGS[name], unroll=1)
    policy = decoder_policy(config)
    params = jax.jit(policy.init)(jax.random.key(0))
    prompts = fakes.prompts(num_prompts=2).replace(length=jnp.array([2, 5]))
    draw = sample.sampler(policy, num_samples=2, max_tokens=8, stop_tokens=())
    samples, _ = jax.jit(draw)(params, prompts, jax.random.key(1))
    logp = jax.jit(policy.measure)(params, prompts, samples).logp
    assert float(jnp.std(logp)) > 0.3
    np.testing.assert_allclose(samples.behaviour.logp, logp, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_kinds_of_layers_are_the_same_in_turn_and_side_by_side(config):
    prompts = fakes.prompts(num_prompts=2)
    samples = fakes.rollout(num_prompts=2, num_samples=3, num_tokens=9).samples
    params = decoder_policy(config).init(jax.random.key(0))
    got = [
        jax.jit(decoder_policy(dataclasses.replace(config, unroll=unroll)).measure)(
            params, prompts, samples
        ).logp
        for unroll in (1, 3)
    ]
    np.testing.assert_allclose(*got, atol=1e-5)


def test_more_positions_than_longrope_was_made_for_are_refused():
    # Beyond, every key of the text would have to be computed again.
    rope = rotary.Rope(100.0, LongScaling((1.0, 2.0), (4.0, 8.0), 8, 1.5))
    table = rotary.rotary_table(8, 4, rope)
    np.testing.assert_allclose(table[1, 0], 1.5 * np.cos([1, 0.05, 1, 0.05]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"original_positions=8 tokens .* got 9"):
        rotary.rotary_table(9, 4, rope)


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"window": 3}, "window must be given where a layer is sliding"),
        ({"sliding": (True, False, True)}, "window must be given where"),
        ({"window": 3, "sliding": (True,)}, "num_layers=3 layers, got 1 values"),
        ({"attention_cap": 0.0}, "attention_cap must"),
        ({"norms": "never"}, "norms must be one of 'before', 'after', 'both'"),
        ({"qk_norm": True}, "qk_norm must be one of None, 'head', 'all', got True"),
        ({"rotary_dim": 10}, "at most head_dim=8, got 10"),
        ({"experts": Experts(2, 3, 8)}, "experts.num_chosen must lie in"),
    ],
)
def test_contradicting_parts_are_refused(sizes, told):
    with pytest.raises(ValueError, match=told):
        DecoderConfig(**{**SIZES, **sizes})
