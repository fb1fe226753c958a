"""The decoder: shared prompts, chunked scoring, and what may not leak."""

import chex
import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import DecoderConfig
from rljax.rollout import sample

PROMPTS = fakes.prompts(num_prompts=2)
SAMPLES = fakes.rollout(num_prompts=2, num_samples=3, num_tokens=5).samples
POLICY = fakes.decoder(num_layers=2, qkv_bias=True)
PARAMS = jax.jit(POLICY.init)(jax.random.key(0))


def statistics_and_gradient(policy, prompts=PROMPTS, samples=SAMPLES, params=PARAMS):
    """TokenStats, and the gradient of a sum that weighs each number differently."""
    push = np.random.default_rng(1).normal(0, 0.1, (2, *SAMPLES.tokens.shape))
    push = jnp.asarray(push.reshape(2, *samples.tokens.shape), jnp.float32)

    def total(params):
        stats = policy.measure(params, prompts, samples)
        return jnp.sum(push[0] * stats.logp + push[1] * stats.entropy), stats

    grads, stats = jax.jit(jax.grad(total, has_aux=True))(params)
    return stats, grads


def close(got, want, atol=1e-5):
    chex.assert_trees_all_close(got, want, atol=atol, rtol=1e-5)


@pytest.fixture(scope="module")
def whole():
    return statistics_and_gradient(POLICY)


def test_scoring_in_chunks_changes_nothing(whole):
    # 3 times 5 tokens and 480 logits: in 4 chunks of 4 tokens, one of them padding.
    chunked = fakes.decoder(num_layers=2, qkv_bias=True, max_logits=140)
    close(statistics_and_gradient(chunked), whole)


@pytest.mark.parametrize("block", [2, 512])
def test_attention_in_blocks_changes_nothing(whole, block):
    in_blocks = fakes.decoder(num_layers=2, qkv_bias=True, attention_block=block)
    close(statistics_and_gradient(in_blocks), whole)


def test_a_shared_prompt_is_the_prompt_of_every_row(whole):
    # Every row with a prompt of its own: the group must see exactly that.
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 3, 0), PROMPTS)
    alone = jax.tree.map(lambda x: x.reshape(6, 1, *x.shape[2:]), SAMPLES)
    stats, grads = statistics_and_gradient(POLICY, repeated, alone)
    want, want_grads = whole
    close(jax.tree.map(lambda x: x.reshape(2, 3, 5), stats), want)
    close(grads, want_grads)


MEASURE = jax.jit(POLICY.measure)


def test_a_token_changes_its_own_logp_and_later_ones_of_its_row_only():
    # Any change elsewhere is a leak: from the future, or from the rest of the group.
    # Both numbers are of one program: another one rounds otherwise.
    tokens = SAMPLES.tokens.at[0, 1, 2].add(1) % 16
    base = MEASURE(PARAMS, PROMPTS, SAMPLES)
    got = MEASURE(PARAMS, PROMPTS, SAMPLES.replace(tokens=tokens))
    changed = np.asarray(jnp.abs(got.logp - base.logp) > 1e-6)
    want = np.zeros((2, 3, 5), bool)
    want[0, 1, 2:] = True
    np.testing.assert_array_equal(changed, want)


def test_a_prompt_changes_its_own_group_only_and_padding_changes_none(whole):
    length = jnp.array([3, 2])
    prompts = PROMPTS.replace(length=length)
    base = MEASURE(PARAMS, prompts, SAMPLES)
    beyond = jnp.arange(5) >= length[:, None]
    tokens = jnp.where(beyond, (PROMPTS.tokens + 5) % 16, PROMPTS.tokens)
    close(MEASURE(PARAMS, prompts.replace(tokens=tokens), SAMPLES), base, atol=1e-6)
    tokens = PROMPTS.tokens.at[0, 0].add(1) % 16
    got = MEASURE(PARAMS, prompts.replace(tokens=tokens), SAMPLES)
    changed = jnp.any(jnp.abs(got.logp - base.logp) > 1e-5, (1, 2))
    assert changed.tolist() == [True, False]


def test_positions_continue_the_prompt_whatever_its_padding(whole):
    # Positions that counted the padded width would turn with it.
    tokens = jnp.pad(PROMPTS.tokens, ((0, 0), (0, 4)))
    close(MEASURE(PARAMS, PROMPTS.replace(tokens=tokens), SAMPLES), whole[0])


def test_the_last_token_is_read_by_no_state_and_a_single_token_by_none(whole):
    first = jax.tree.map(lambda x: x[:, :, :1], (SAMPLES.tokens, SAMPLES.mask))
    one = SAMPLES.replace(tokens=first[0], mask=first[1])
    close(MEASURE(PARAMS, PROMPTS, one).logp, whole[0].logp[..., :1])


def test_entropy_and_logp_are_those_of_the_logits(whole):
    @jax.jit
    def logits(params):
        return POLICY.logits(params, POLICY.hidden(params, PROMPTS, SAMPLES))

    logp = jax.nn.log_softmax(logits(PARAMS), -1)
    close(whole[0].entropy, -jnp.sum(jnp.exp(logp) * logp, -1))
    chosen = jnp.take_along_axis(logp, SAMPLES.tokens[..., None], -1)[..., 0]
    close(whole[0].logp, chosen)


def test_bfloat16_activations_still_give_float32_statistics():
    policy = fakes.decoder(dtype=jnp.bfloat16)
    params = jax.jit(policy.init)(jax.random.key(0))
    stats = jax.jit(policy.measure)(params, PROMPTS, SAMPLES)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    assert stats.logp.dtype == stats.entropy.dtype == jnp.float32


def test_an_untied_head_is_another_matrix():
    policy = fakes.decoder(tie_embeddings=False)
    assert "head" in jax.eval_shape(policy.init, jax.random.key(0))
    assert "head" not in PARAMS


def temporary_bytes(num_tokens, max_logits, vocab_size=8192):
    """Temporary memory of a gradient step on 8 rows, as compiled, not run."""
    policy = fakes.decoder(vocab_size=vocab_size, max_logits=max_logits, d_model=16)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    samples = fakes.rollout(2, 4, num_tokens).samples
    step = jax.grad(lambda p: jnp.sum(policy.measure(p, PROMPTS, samples).logp))
    return jax.jit(step).lower(params).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.slow
def test_memory_does_not_grow_with_tokens_times_vocabulary():
    # 16 more tokens are 4 MiB more of logits. In chunks of 2^16 logits (256 KiB) only
    # hidden states may grow with them; without chunks there is more than all logits.
    short, long = (temporary_bytes(t, 2**16) for t in (16, 32))
    assert long - short < 2**22 / 8
    assert temporary_bytes(32, 2**30) > 2**23


@pytest.mark.slow
def test_a_long_prompt_costs_its_group_once():
    # 16 samples of 4 tokens after a prompt of 2048: nearly all is the prompt's. By the
    # compiled programs' own analysis, repeated prompts cost 16 times as much. (Of a
    # single prompt, XLA keeps more blocks of scores at a time; and it counts a loop's
    # body once, so that the prompt is one block.)
    policy = fakes.decoder(num_layers=2, attention_block=2048)
    prompts = fakes.prompts(2, 2048)
    samples = fakes.rollout(2, 16, 4).samples.replace(behaviour=None)
    draw = sample.sampler(policy, num_samples=16, max_tokens=4, stop_tokens=(0,))
    draw_one = sample.sampler(policy, num_samples=1, max_tokens=4, stop_tokens=(0,))

    def gradient(params, prompts, samples):
        def total(params):
            return jnp.sum(policy.measure(params, prompts, samples).logp)

        return jax.grad(total)(params)

    def cost(fn, *inputs):
        program = jax.jit(fn).lower(*jax.eval_shape(lambda: inputs)).compile()
        memory = program.memory_analysis().temp_size_in_bytes
        return np.array([program.cost_analysis()["flops"], memory])

    key = jax.random.key(0)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, 16, 0), prompts)
    apart = jax.tree.map(lambda x: x.reshape(-1, 1, *x.shape[2:]), samples)
    shared = cost(draw, PARAMS, prompts, key), cost(gradient, PARAMS, prompts, samples)
    copies = (
        cost(draw_one, PARAMS, repeated, key),
        cost(gradient, PARAMS, repeated, apart),
    )
    for once, often in zip(shared, copies, strict=True):
        np.testing.assert_allclose(often / once, 16, rtol=0.1)
    keys, many = (
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(policy.prefill, *inputs)))
        for inputs in ((PARAMS, prompts), (PARAMS, repeated))
    )
    assert many == 16 * keys


# The layers are one scan.

DEEP = fakes.decoder(num_layers=4, qkv_bias=True)
DEEP_PARAMS = jax.jit(DEEP.init)(jax.random.key(0))


def everything(policy):
    """Samples, their statistics, and the gradient of these on another rollout."""
    draw = sample.sampler(policy, num_samples=3, max_tokens=5, stop_tokens=(0,))
    drawn = jax.jit(draw)(DEEP_PARAMS, PROMPTS, jax.random.key(2))
    return drawn, statistics_and_gradient(policy, params=DEEP_PARAMS)


@pytest.fixture(scope="module")
def deep():
    return everything(DEEP)


@pytest.mark.parametrize("unroll", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_layers_side_by_side_or_in_turn_are_the_same(deep, unroll):
    # 4, 2 and 1 groups of layers. A cache read or written at the place of another layer
    # changes the sampler's numbers, parameters taken in another order all of them.
    policy = fakes.decoder(num_layers=4, qkv_bias=True, unroll=unroll)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes(params, DEEP_PARAMS)
    close(everything(policy), deep)


def test_every_layer_matters_and_begins_with_a_draw_of_its_own(deep):
    kernel = DEEP_PARAMS["layers"]["q"]["kernel"]
    gradient = deep[1][1]["layers"]["q"]["kernel"]
    assert kernel.shape == gradient.shape == (4, 32, 32)
    assert len(np.unique(kernel[:, 0, 0])) == 4
    assert np.all(np.abs(gradient).max((1, 2)) > 1e-4)


def gradient_program(num_tokens=5, **sizes):
    """The gradient of a measurement, compiled on shapes alone."""
    policy = fakes.decoder(**sizes)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    samples = fakes.rollout(2, 3, num_tokens).samples
    gradient = jax.grad(lambda p: jnp.sum(policy.measure(p, PROMPTS, samples).logp))
    return jax.jit(gradient).lower(params).compile()


def sampler_program(num_tokens=5, num_samples=3, num_slots=None, **sizes):
    policy = fakes.decoder(**sizes)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    draw = sample.sampler(
        policy,
        num_samples=num_samples,
        max_tokens=num_tokens,
        stop_tokens=(0,),
        num_slots=num_slots,
    )
    return jax.jit(draw).lower(params, PROMPTS, jax.random.key(0)).compile()


@pytest.mark.slow
@pytest.mark.parametrize("program", [gradient_program, sampler_program])
def test_the_size_of_programs_does_not_grow_with_depth(program):
    # Side by side, 32 layers are nearly 8 times the instructions of 4.
    few, many = (
        program(num_layers=n, unroll=1).as_text().count(" = ") for n in (4, 32)
    )
    assert 500 < many < 1.2 * few


@pytest.mark.parametrize("unroll", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("num_samples", "num_slots"),
    [(3, None), pytest.param(1, None, marks=pytest.mark.slow), (3, 5)],
)
def test_decoding_copies_no_cache(num_samples, num_slots, unroll):
    # 400 tokens, 4 layers of keys and values, 2 heads 8 wide, for each row of 2 prompts
    # or slot: one copy of all, or a second array to write to, would make 2 of it. In a
    # scan a layer's part is cut out: a quarter more.
    draw = sampler_program(401, num_samples, num_slots, num_layers=4, unroll=unroll)
    cache = (num_slots or 2 * num_samples) * 400 * 4 * 2 * 2 * 8 * 4
    assert 1 < draw.memory_analysis().temp_size_in_bytes / cache < 1.7


@pytest.mark.slow
def test_what_is_computed_again_need_not_be_kept(deep):
    sizes = {"num_layers": 4, "qkv_bias": True, "unroll": 1}
    again = statistics_and_gradient(
        fakes.decoder(**sizes, remat=True), params=DEEP_PARAMS
    )
    close(again, deep[1])
    memory = [
        gradient_program(65, **sizes, remat=remat).memory_analysis().temp_size_in_bytes
        for remat in (False, True)
    ]
    assert memory[1] < 0.6 * memory[0]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_layers": 4, "unroll": 3}, "divisor of num_layers=4, got 3"),
        ({"num_layers": 4, "unroll": 0}, "unroll must lie in .1, .*, got 0"),
        ({"num_heads": 3, "num_kv_heads": 2}, "multiple of num_kv_heads"),
        ({"head_dim": 5}, "head_dim must be even"),
    ],
)
def test_impossible_sizes_are_refused(sizes, message):
    good = {"num_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
    with pytest.raises(ValueError, match=message):
        DecoderConfig(vocab_size=8, d_model=8, d_ff=8, **good | sizes)


@pytest.mark.parametrize(
    "unroll",
    [
        pytest.param(1, marks=pytest.mark.slow),
        2,
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_decoding_reads_weights_that_were_cast_and_joined_once(unroll):
    # Cast at each token they would be read in float32; apart they are five products.
    policy = fakes.decoder(
        num_layers=4, qkv_bias=True, unroll=unroll, dtype=jnp.bfloat16
    )
    weights = policy.decode_params(DEEP_PARAMS)
    assert len(weights["layers"]) == unroll
    for layer in weights["layers"].values():
        assert set(layer) >= {"q_k_v", "gate_up"} and not {"q", "up"} & set(layer)
        assert layer["q_k_v"]["kernel"].shape == (4 // unroll, 32, 64)
    kinds = jax.tree_util.tree_leaves_with_path(weights)
    assert {leaf.dtype.name for path, leaf in kinds if path[-1].key != "scale"} == {
        "bfloat16"
    }
    tokens, t = jnp.ones((8, 2), jnp.int32), jnp.zeros(8, jnp.int32)
    _, prompt = jax.jit(policy.prefill)(DEEP_PARAMS, fakes.prompts(8))
    cache = policy.init_cache(prompt, 2, 4)
    got, _ = jax.jit(policy.decode)(weights, tokens, t, prompt, cache)

    def apart(layer):  # each product by itself
        q_k_v, gate_up = layer.pop("q_k_v"), layer.pop("gate_up")
        for name, part in (
            ("q", np.s_[..., :32]),
            ("k", np.s_[..., 32:48]),
            ("v", np.s_[..., 48:]),
        ):
            layer[name] = jax.tree.map(lambda x, part=part: x[part], q_k_v)
        for name, part in (("gate", np.s_[..., :48]), ("up", np.s_[..., 48:])):
            layer[name] = jax.tree.map(lambda x, part=part: x[part], gate_up)
        return layer

    layers = {name: apart(dict(layer)) for name, layer in weights["layers"].items()}
    single = {**weights, "layers": layers}
    want, _ = jax.jit(policy.decode)(single, tokens, t, prompt, cache)
    chex.assert_trees_all_close(got, want, atol=0.02)
    assert float(jnp.std(want)) > 0.3
