"""Attention in blocks and with shared prompts, against the textbook's formula."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import attention, rotary
from rljax.model.attention import KeyValue

P, H, G, R, D = 2, 2, 3, 2, 8


def inputs(num_tokens, prompt_tokens, seed=0):
    """Queries, own and prompt's keys and values, and which of the latter count."""
    draw = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), jnp.float32)

    own = KeyValue(*(normal(P, H * G, num_tokens, D) for _ in range(2)))
    prompt = KeyValue(*(normal(P, H, prompt_tokens, D) for _ in range(2)))
    seen = jnp.arange(prompt_tokens) < jnp.array([[1], [prompt_tokens]])
    return normal(P, H, G, R, num_tokens, D), own, prompt, seen


def textbook(q, own, prompt, seen):
    """One softmax over each row's whole sequence."""
    S, T = prompt.key.shape[2], q.shape[-2]
    k, v = (
        jnp.concatenate([jnp.repeat(shared, G, 1), mine], -2)
        for shared, mine in zip(prompt, own, strict=True)
    )
    k, v = (x.reshape(P, H, G, S + T, D) for x in (k, v))
    scores = jnp.einsum("phgrtd,phgud->phgrtu", q, k) / jnp.sqrt(D)
    place = jnp.arange(S + T)
    seen = jnp.concatenate([seen, jnp.ones((P, T), bool)], -1)
    mask = seen[:, None] & (place <= S + jnp.arange(T)[:, None])
    weight = jax.nn.softmax(jnp.where(mask[:, None, None, None], scores, -jnp.inf))
    return jnp.einsum("phgrtu,phgud->phgrtd", weight, v)


def out_and_gradients(attend, num_tokens, prompt_tokens):
    *arrays, seen = inputs(num_tokens, prompt_tokens)

    def total(q, own, prompt):
        out = attend(q, own, prompt, seen)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size)).reshape(out.shape)), out

    return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays)


@pytest.mark.parametrize(
    ("num_tokens", "prompt_tokens"),
    # One token; the prompt apart, in front of each row; both in three uneven blocks.
    [(1, 3), (5, 3), (5, 2), (130, 70), (130, 4)],
)
def test_blocks_and_shared_prompts_are_one_softmax(num_tokens, prompt_tokens):
    sizes = num_tokens, prompt_tokens
    got = out_and_gradients(attention.attend_causally, *sizes)
    chex.assert_trees_all_close(got, out_and_gradients(textbook, *sizes), atol=3e-6)


def test_without_a_prompt_tokens_see_those_before_them():
    q, own, _, _ = inputs(130, 1)
    nothing = KeyValue(*(jnp.zeros((P, H, 0, D)) for _ in range(2)))
    want = textbook(q, own, nothing, jnp.zeros((P, 0), bool))
    got = jax.jit(attention.attend_causally)(q, own)
    chex.assert_trees_all_close(got, want, atol=2e-6)


def test_most_of_what_causality_hides_is_not_computed():
    # Four blocks of queries read 1/4, 2/4, 3/4 and all of the keys: 5/8 on average.
    def flops(attend, *inputs):
        return jax.jit(attend).lower(*inputs).compile().cost_analysis()["flops"]

    q, own, _, _ = inputs(512, 1)
    mask = jnp.tril(jnp.ones((512, 512), bool))
    whole = flops(attention.attend, q, (own, mask))
    assert flops(attention.attend_causally, q, own) == pytest.approx(
        5 / 8 * whole, rel=0.02
    )


def test_slow_rotations_are_scaled_and_fast_ones_kept():
    # Frequencies that turn 10, 3, 2, 1 and 0.1 times in 200 positions. Halfway between
    # 1 and 3 turns, the frequency is halfway between itself and an eighth of it.
    scaling = rotary.Llama3Scaling(8.0, 1.0, 3.0, original_positions=200)
    turn = 2 * np.pi / 200
    got = scaling.scale(turn * np.array([10.0, 3.0, 2.0, 1.0, 0.1]), theta=1e4)
    want = turn * np.array([10.0, 3.0, 2 * 9 / 16, 1 / 8, 0.1 / 8])
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_scaling_by_1_changes_no_table():
    plain = rotary.rotary_table(9, 8, rotary.Rope(100.0))
    scaling = rotary.Llama3Scaling(1.0, 1.0, 4.0, 8)
    scaled = rotary.rotary_table(9, 8, rotary.Rope(100.0, scaling))
    np.testing.assert_allclose(scaled, plain, atol=1e-7)
