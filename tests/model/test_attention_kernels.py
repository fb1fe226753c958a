"""Kernels of attention against the textbook's formula, as far as a CPU can tell.

Splash runs in jax's interpreter of TPU kernels. cuDNN cannot run: what is around it
does, with jax's own implementation of the same function in its place, and what is
lowered for CUDA calls it.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_case import D, G, H, P, R, inputs, out_and_gradients, textbook

from rljax import mesh
from rljax.model import DecoderConfig, attention, attention_splash, causal
from rljax.model.attention import Scores
from rljax.model.attention_cudnn import attend_by_cudnn
from rljax.model.attention_splash import attend_by_splash

CASES = [
    (1, 3, {}),  # one token
    (21, 13, {}),  # less than a tile
    (21, 13, {"window": 6}),  # prompts of 1 and of 13 tokens: the window's end differs
    (21, 13, {"window": 1}),  # each token sees itself alone
]

interpreted = functools.partial(attend_by_splash, interpret=True)


@pytest.mark.parametrize(
    ("num_tokens", "prompt_tokens", "options"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES),
        pytest.param(21, 13, {"style": Scores(3.0, 1.5)}, marks=pytest.mark.slow),
        (21, 13, {"window": 3, "style": Scores(cap=2.0)}),
    ],
)
def test_splash_is_one_softmax(num_tokens, prompt_tokens, options):
    sizes = num_tokens, prompt_tokens
    want = out_and_gradients(textbook, *sizes, **options)
    got = out_and_gradients(interpreted, *sizes, **options)
    chex.assert_trees_all_close(got, want, atol=3e-6)


@pytest.mark.slow
def test_splash_of_several_tiles_is_one_softmax():
    # 2 tiles of queries and 3 of keys; a tile that is skipped wrongly would show.
    want = out_and_gradients(textbook, 530, 200)
    got = out_and_gradients(interpreted, 530, 200)
    chex.assert_trees_all_close(got, want, atol=1e-5)
    near = {"window": 40}
    want = out_and_gradients(textbook, 530, 200, **near)
    got = out_and_gradients(interpreted, 530, 200, **near)
    chex.assert_trees_all_close(got, want, atol=1e-5)


@pytest.mark.slow
def test_splash_in_bfloat16_is_as_near_to_exact_as_the_whole_matrix_is():
    exact, narrow = inputs(40, 13), inputs(40, 13, jnp.bfloat16)
    want = textbook(*exact)
    whole = jax.jit(attention.attend_causally)(*narrow)
    got = jax.jit(interpreted)(*narrow)
    assert got.dtype == jnp.bfloat16
    error = jnp.max(jnp.abs(got - want))
    assert error < 1.5 * jnp.max(jnp.abs(whole - want)), (error, whole)


@pytest.mark.slow
def test_splash_on_a_mesh_runs_on_each_devices_own_prompts_and_heads():
    want = out_and_gradients(textbook, 21, 13)
    with mesh.using(mesh.make(jax.devices()[:4], data=2, tensor=2)):
        got = out_and_gradients(interpreted, 21, 13)
    got, want = jax.device_get((got, want))
    chex.assert_trees_all_close(got, want, atol=3e-6)


@pytest.mark.parametrize(("num_tokens", "prompt_tokens", "options"), CASES)
def test_what_is_given_to_cudnn_is_one_softmax(num_tokens, prompt_tokens, options):
    # A sequence that begins at another place than a prompt's end would see padding.
    sizes = num_tokens, prompt_tokens
    got = out_and_gradients(
        functools.partial(attend_by_cudnn, implementation="xla"), *sizes, **options
    )
    want = out_and_gradients(textbook, *sizes, **options)
    chex.assert_trees_all_close(got, want, atol=3e-6)


def lowered_for_cuda(monkeypatch, **options):
    from jax._src.cudnn import fused_attention_stablehlo as fused

    # Without a GPU there is no cuDNN to ask for its version.
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    arrays = jax.eval_shape(lambda: inputs(40, 13, jnp.bfloat16))

    def total(q, own, prompt, seen):
        return jnp.sum(attend_by_cudnn(q, own, prompt, seen, **options))

    step = jax.jit(jax.grad(total, (0, 1, 2)))
    return step.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()


def test_what_is_lowered_for_cuda_calls_cudnn_forward_and_backward(monkeypatch):
    text = lowered_for_cuda(monkeypatch)
    assert "__cudnn$fmhaSoftmax(" in text and "__cudnn$fmhaSoftmaxBackward(" in text
    assert '"PADDING_CAUSAL"' in text.replace("\\22", '"')
    # No array holds scores: 53 tokens, and one for jax, which refuses odd numbers.
    assert "54x4x8x" in text and "54x54x" not in text
    assert '"sliding_window_length": 5' in lowered_for_cuda(
        monkeypatch, window=5
    ).replace("\\22", '"')


def test_what_cudnn_does_not_do_is_refused():
    q, own, _, _ = inputs(4, 3)
    with pytest.raises(ValueError, match=r'"cudnn".*attention_cap, got 2.*"blocks"'):
        attend_by_cudnn(q, own, style=Scores(cap=2.0))
    with pytest.raises(ValueError, match=r'"cudnn".*bfloat16 .* got float32.*"blocks"'):
        attend_by_cudnn(q, own)


def config(**options):
    sizes = {"vocab_size": 8, "num_layers": 2, "d_model": 8, "d_ff": 8}
    return DecoderConfig(
        **sizes, num_heads=H * R, num_kv_heads=H, head_dim=D, **options
    )


def test_auto_takes_blocks_where_there_are_many_scores():
    assert causal.kind_of(config(), 1024) == "whole"
    assert causal.kind_of(config(), 1025) == "blocks"
    assert causal.kind_of(config(attention_block=8), 3) == "blocks"
    assert causal.kind_of(config(attention="splash"), 3) == "splash"
    with pytest.raises(ValueError, match=r"attention must be one of 'auto'.*'flash'"):
        config(attention="flash")


@pytest.mark.parametrize(
    "kind", ["blocks", pytest.param("splash", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("slides", [True, False])
def test_a_layer_may_slide_beside_one_that_does_not(monkeypatch, kind, slides):
    # Layers are one scan, in which a window is traced. That of a kernel is not.
    monkeypatch.setattr(attention_splash, "attend_by_splash", interpreted)
    c = config(attention=kind, window=4, sliding=(True, False))
    arrays = inputs(9, 5)
    attend = jax.jit(lambda window: causal.attend(c, *arrays, window=window))
    got = attend(jnp.int32(4 if slides else 2**30))
    want = textbook(*arrays, window=4 if slides else None)
    assert got.shape == (P, H, G, R, 9, D)
    np.testing.assert_allclose(got, want, atol=3e-6)
