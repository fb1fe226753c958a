"""Attention that holds no scores, against the textbook's formula."""

import chex
import jax
import jax.numpy as jnp
import pytest
from attention_case import G, H, P, R, inputs, out_and_gradients, textbook
from jax.extend import core

from rljax.model import attention
from rljax.model.attention import Scores
from rljax.model.attention_blocks import attend_in_blocks


@pytest.mark.parametrize(
    ("num_tokens", "prompt_tokens", "options"),
    [
        (1, 3, {}),  # one block of one token
        (16, 8, {}),  # whole blocks
        (21, 13, {}),  # both are padded
        (21, 13, {"style": Scores(scalar=3.0, cap=1.5)}),
        (21, 13, {"window": 6}),  # less than a block: most blocks are skipped
        (
            21,
            13,
            {"window": 1, "style": Scores(cap=2.0)},
        ),  # each token sees itself alone
    ],
)
def test_blocks_are_one_softmax(num_tokens, prompt_tokens, options):
    sizes = num_tokens, prompt_tokens
    got = out_and_gradients(attend_in_blocks, *sizes, block=8, **options)
    want = out_and_gradients(textbook, *sizes, **options)
    chex.assert_trees_all_close(got, want, atol=3e-6)


def test_without_a_prompt_it_is_the_attention_of_the_sampler():
    q, own, _, _ = inputs(21, 1)
    got = jax.jit(lambda q, own: attend_in_blocks(q, own, block=8))(q, own)
    want = jax.jit(attention.attend_causally)(q, own)
    chex.assert_trees_all_close(got, want, atol=2e-6)


def test_a_window_may_be_traced():
    q, own, prompt, seen = inputs(21, 13)

    def attend(window):
        return attend_in_blocks(q, own, prompt, seen, window=window, block=8)

    for window in (3, 1000):
        want = textbook(q, own, prompt, seen, window=window)
        chex.assert_trees_all_close(jax.jit(attend)(window), want, atol=3e-6)


def test_what_padding_holds_changes_nothing():
    # Keys behind a prompt's length: a mask that adds -inf to a NaN would keep it.
    q, own, prompt, seen = inputs(21, 13)
    dirty = jax.tree.map(lambda x: jnp.where(seen[:, None, :, None], x, 1e4), prompt)

    def grads(prompt):
        def total(q, own, prompt):
            return jnp.sum(attend_in_blocks(q, own, prompt, seen, block=8) ** 2)

        return jax.grad(total, (0, 1, 2))(q, own, prompt)

    chex.assert_trees_all_close(jax.jit(grads)(dirty), jax.jit(grads)(prompt))


def test_bfloat16_is_as_near_to_exact_as_the_whole_matrix_is():
    exact = inputs(40, 13)
    narrow = inputs(40, 13, jnp.bfloat16)
    want = textbook(*exact)
    whole = jax.jit(attention.attend_causally)(*narrow)
    got = jax.jit(lambda *x: attend_in_blocks(*x, block=8))(*narrow)
    assert got.dtype == jnp.bfloat16
    error = jnp.max(jnp.abs(got - want))
    assert error < 1.5 * jnp.max(jnp.abs(whole - want)), (error, whole)


def test_memory_grows_with_the_number_of_tokens_and_not_with_its_square():
    def temporaries(num_tokens):
        arrays = jax.eval_shape(lambda: inputs(num_tokens, 16))

        def total(q, own, prompt, seen):
            return jnp.sum(attend_in_blocks(q, own, prompt, seen, block=64))

        made = jax.jit(jax.grad(total, (0, 1, 2))).lower(*arrays).compile()
        return made.memory_analysis().temp_size_in_bytes

    assert temporaries(1024) < 2.5 * temporaries(512)


def test_a_scan_over_layers_keeps_no_masks():
    # Masks are the same in all layers, so that a scan's derivative computed them before
    # it, for all pairs of blocks, heads and samples: 8 GiB at the shape of an 8B.
    q, own, prompt, seen = inputs(24, 16)

    def total(q, own, prompt):
        def layer(x, _):
            return x + attend_in_blocks(x, own, prompt, seen, block=8), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer), q, length=3)[0])

    traced = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(q, own, prompt)
    assert 0 < largest_mask(traced.jaxpr) <= P * H * G * R * 8 * 8


def largest_mask(jaxpr):
    """Elements of the largest array of booleans in a traced program."""
    found = [
        x.aval.size for eqn in jaxpr.eqns for x in eqn.outvars if x.aval.dtype == bool
    ]
    for eqn in jaxpr.eqns:
        found += map(largest_mask, core.jaxprs_in_params(eqn.params))
    return max(found, default=0)
