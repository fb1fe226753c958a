"""What a step takes, against numbers that a person can check."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest
import tiny_program

from rljax import mesh
from rljax.model import decoder_policy
from rljax.model.attention import KeyValue
from rljax.model.attention_blocks import attend_in_blocks
from rljax.plan import cost

# One layer of 4 matrices 16 x 16 and 3 of 16 x 32, 2,560 weights; an output head of
# 16 x 16, 256. Attention: a pair of query and key costs 4 x 2 heads x 8 = 64.
# P, S, G, T = 8, 3, 2, 4.
CONFIG = tiny_program.Config(max_tokens=4)


@functools.cache
def made(config=CONFIG):
    program = tiny_program.program(config)
    compiled = program.compile()
    rates = cost.Rates(1e6, 2e6, 3e6)
    return program, cost.plan_step(program, program.sizes(), compiled, rates)


def test_the_arithmetic_of_a_step_by_hand():
    # Prompts: 8 of 3 tokens through the layer, the last of each through the head; 6
    # pairs each. Sampling: 3 fed tokens of 16 rows through everything; each sees the 3
    # of the prompt, and 1, 2 and 3 own ones: 15 pairs a row. Training: both once more
    # and the head for 8 more first tokens, times 3 with the backward pass.
    prompts = 2 * 8 * (3 * 2560 + 256) + 64 * 8 * 6
    sampling = 2 * 16 * 3 * 2816 + 64 * 16 * 15
    training = 3 * (prompts + sampling + 2 * 8 * 256)
    found = cost.decoder_flops(tiny_program.program(CONFIG).sizes())
    assert found == (prompts, sampling, training) == (130_048, 285_696, 1_259_520)


def test_passes_multiply_training_alone_and_minibatches_nothing():
    sizes = tiny_program.program(CONFIG).sizes()
    once = cost.decoder_flops(sizes)
    found = cost.decoder_flops(sizes._replace(num_passes=3, num_minibatches=4))
    assert found == (once.prompts, once.sampling, 3 * once.training)


@pytest.mark.parametrize("pieces", [(1, 1), (2, 1), (2, 2)])
def test_the_traced_program_does_the_arithmetic_and_little_more(pieces):
    # A loop's body counted once would give a third of sampling and, with minibatches
    # or microbatches, a half or a quarter of training; repeated prompts a half more.
    program = tiny_program.program(
        tiny_program.Config(
            max_tokens=4, num_minibatches=pieces[0], num_microbatches=pieces[1]
        )
    )
    sizes = program.sizes()
    traced = cost.traced_flops(program, sizes)
    for least, does in zip(cost.decoder_flops(sizes), traced, strict=True):
        assert least <= does <= 1.1 * least


def test_a_token_counts_the_blocks_of_the_cache_up_to_it():
    # 299 keys are 4 blocks of 75, of which tokens read 2.5 on average, 187 keys, where
    # 150 are needed beside weights that count as 88. All of them would be 1.6 times as
    # much as the least.
    program = tiny_program.program(tiny_program.Config(max_tokens=300))
    sizes = program.sizes()
    traced = cost.traced_flops(program, sizes).sampling
    least = cost.decoder_flops(sizes).sampling
    assert 1.1 < traced / least < 1.2


def test_attention_in_blocks_counts_the_keys_that_a_query_may_see():
    # 4 blocks of 8 queries see 1, 2, 3 and 4 blocks of their own keys and 2 of the
    # prompt's: 18 pairs of blocks. Each pair of tokens is a score and a value of width
    # 4; backward, the score again and four products for the gradients. All 4 blocks
    # counted for each query would be 24 pairs, the loop's body counted once 12.
    q = jnp.ones((1, 1, 1, 1, 32, 4))
    own, prompt = (KeyValue(*(jnp.ones((1, 1, n, 4)),) * 2) for n in (32, 16))

    def attend(q, own, prompt):
        seen = jnp.ones((1, 16), bool)
        return jnp.sum(attend_in_blocks(q, own, prompt, seen, block=8))

    each = 2 * 4 * 18 * 8 * 8
    for fn, products in ((attend, 2), (jax.grad(attend, (0, 1, 2)), 2 + 5)):
        traced = jax.make_jaxpr(fn)(q, own, prompt)
        assert cost.count_matmul_flops(traced.jaxpr) == (products * each, 0)


def test_a_step_with_attention_in_blocks_does_little_more_than_the_arithmetic():
    # Its loops taken for the sampler's, prompts would count as nothing, and sampling
    # as 39 times their attention.
    sizes = {"prompt_tokens": 40, "max_tokens": 40, "num_minibatches": 2}
    program = tiny_program.program(tiny_program.Config(**sizes, attention_block=8))
    sizes = program.sizes()
    traced = cost.traced_flops(program, sizes)
    for least, does in zip(cost.decoder_flops(sizes), traced, strict=True):
        assert least <= does <= 1.2 * least


def test_products_of_experts_count_each_row_once():
    # 6 rows of 3 times 2 kernels of 3 x 4, and the gradients of both.
    x, kernels, sizes = jnp.ones((6, 3)), jnp.ones((2, 3, 4)), jnp.array([2, 4])

    def total(x, kernels):
        return jnp.sum(jax.lax.ragged_dot(x, kernels, sizes) ** 2)

    traced = jax.make_jaxpr(jax.grad(total, (0, 1)))(x, kernels)
    assert cost.count_matmul_flops(traced.jaxpr) == (3 * 2 * 6 * 3 * 4, 0)


def test_products_count_loops_branches_and_what_is_computed_again():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 3))
    each = 2 * 2 * 3 * 3

    def count(fn, **options):
        return cost.count_matmul_flops(jax.make_jaxpr(fn)(a).jaxpr, **options)

    def scan(x):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, b), None), x, length=5)

    assert count(lambda x: x @ b @ b) == (2 * each, 0)
    assert count(scan) == (5 * each, 0)
    assert count(scan, repeat=lambda length: 1) == (each, 0)
    loop = functools.partial(jax.lax.while_loop, lambda x: x[0, 0] < 9)
    assert count(lambda x: loop(lambda x: x @ b, x @ b @ b)) == (2 * each, each)
    again = functools.partial(loop, lambda x: loop(lambda x: x @ b, x @ b))
    assert count(again, turns=2.5) == (0, 3.5 * each)
    branch = functools.partial(jax.lax.cond, a[0, 0] > 0)
    either = functools.partial(branch, lambda x: x @ b @ b, lambda x: x @ b)
    assert count(either) == (2 * each, 0)
    assert count(either, often=0.25) == (1.25 * each, 0)
    # Forward, and backward to the argument alone; kept from a checkpoint: once more.
    square = jax.checkpoint(lambda x: jnp.sum((x @ b) ** 2))
    assert count(jax.grad(square)) == (3 * each, 0)


def test_the_compiler_counts_the_products_and_what_lies_between_them():
    _, found = made()
    everything, products = found.loops_counted_once
    assert products < everything < 2 * products


def test_memory_by_hand():
    # 2,816 weights and three norms of 16, in float32; adam has two of each and a count.
    # Keys and values: 2 x 2 heads x 8 x 4 bytes for 8 x 3 prompt tokens and 16 x 3 fed
    # ones. Logits of 16 x 4 tokens.
    program, found = made()
    memory = found.memory
    assert found.num_parameters == 2864
    assert memory.parameters == memory.gradients == 4 * 2864
    assert memory.optimizer == 2 * memory.parameters + 4
    assert memory.cache == 2 * 2 * 8 * 4 * (24 + 48)
    assert memory.logits == 4 * 16 * 16 * 4
    assert memory.rest >= cost.num_bytes(program.prompts) > 0
    measured = cost.compiled_memory(program.compile())
    assert memory.total == (
        sum(measured[k] for k in ("arguments", "outputs", "temporaries", "code"))
        - measured["outputs_in_arguments"]
    )
    assert memory.temporaries > memory.cache  # it lives through the sampler's loop


def test_on_a_mesh_all_is_of_one_device():
    # Of 8 devices along fsdp each has an eighth of the 2,816 weights and all three
    # norms of 16, of the moments the same, and an eighth of the rows: their keys,
    # their logits, their work. A plan of one device would say 8 times that.
    _, whole = made()
    program = tiny_program.program(CONFIG)._replace(place=mesh.make(fsdp=8))
    found = cost.plan_step(program, whole.sizes, program.compile(), whole.rates)
    assert found.devices == 8
    assert found.memory.parameters == 4 * (2816 // 8 + 48)
    assert found.memory.optimizer == 2 * found.memory.parameters + 4
    assert found.memory.cache == whole.memory.cache / 8
    assert found.memory.logits == whole.memory.logits / 8
    assert found.arithmetic == whole.arithmetic.over(8)
    assert sum(found.traced) == pytest.approx(sum(whole.traced) / 8)
    # While decoding, parameters are whole on each device, and are read.
    read = 3 * (4 * 2864 + 128 * 24 / 8) + 2 * 128 * 48 / 8
    assert cost.bytes_decoded(program, found.sizes) == read


@pytest.mark.slow
def test_microbatches_take_less_memory():
    def memory(pieces):
        program = tiny_program.program(
            tiny_program.Config(num_prompts=64, max_tokens=16, num_microbatches=pieces)
        )
        return cost.memory(program, program.sizes(), program.compile())

    whole, cut = memory(1), memory(8)
    assert cut.temporaries < 0.8 * whole.temporaries
    assert cut.logits == whole.logits / 8


def test_time_is_arithmetic_over_rates_or_bytes_where_they_take_longer():
    # Each of the 3 fed tokens reads the parameters and the prompts' 24 keys; own keys,
    # 48 in all, are read 1, 2 and 3 thirds: twice.
    program, found = made()
    read = 3 * (4 * 2864 + 128 * 24) + 2 * 128 * 48
    assert cost.bytes_decoded(program, found.sizes) == read
    assert read / 3e6 < 285_696 / 2e6
    assert found.seconds == pytest.approx((0.130048, 0.142848, 1.25952))
    assert found.tokens == 8 * 2 * 4
    assert found.tokens_per_second == pytest.approx(
        64 / (0.130048 + 0.142848 + 1.25952)
    )
    slow = cost.plan_step(
        program, found.sizes, program.compile(), cost.Rates(1e6, 2e6, 1e3)
    )
    assert slow.seconds.sampling == pytest.approx(read / 1e3)


def test_slots_take_turns():
    # 16 samples in 4 slots: 4 rounds, each with the keys of 4 prompts and 4 samples.
    program, found = made()
    slots = tiny_program.program(tiny_program.Config(max_tokens=4, num_slots=4)).sizes()
    assert slots == found.sizes._replace(num_rows=4)
    read = 4 * (3 * (4 * 2864 + 128 * 12) + 2 * 128 * 12)
    assert cost.bytes_decoded(program, slots) == read
    assert cost.decoder_flops(slots) == cost.decoder_flops(found.sizes)


def test_sizes_are_those_of_the_parts():
    # Written down nowhere: a plan can not speak of another program than the one it got.
    config = tiny_program.Config(
        prompt_tokens=5, num_samples=4, max_tokens=3, num_minibatches=2
    )
    found = tiny_program.program(config).sizes()
    assert found[1:] == (8, 4, 5, 3, 32, 1, 2, 1, 1)
    assert found.num_pieces == 2


def test_the_logits_limit_is_the_decoders():
    limit = inspect.signature(decoder_policy).parameters["max_logits"].default
    assert limit == cost.MAX_LOGITS
