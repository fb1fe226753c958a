"""Attention of one token over a ring of keys, against the textbook's formula."""

import fakes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.model import attention_cached
from rljax.model.attention import PLAIN, KeyValue, Scores

P, H, G, R, D, S, N = 2, 2, 3, 2, 8, 5, 2
HEADS = N * H * G


def inputs(num_keys, dtype=jnp.float32, split=False):
    """q, own key, prompt and a ring's keys, of which every place holds something."""
    draw = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(draw.normal(size=shape), dtype)

    U = attention_cached.ring_size(num_keys)
    heads = (N, H * G) if split else (HEADS,)
    return (
        normal(P, H, G, R, 1, D),
        KeyValue(*(normal(P, H * G, 1, D) for _ in range(2))),
        KeyValue(*(normal(P, H, S, D) for _ in range(2))),
        KeyValue(*(normal(P, *heads, U, D) for _ in range(2))),
    )


@fakes.jit
def attend(arrays, place, count, n, window):
    return _attend(arrays, place, count, n, window, PLAIN)


def _attend(arrays, place, count, n, window, style):
    q, new, prompt, keys = arrays
    seen = (jnp.arange(S) < jnp.array([[2], [S]]))[:, None, None]
    ring = attention_cached.Ring(keys, place, count, jnp.max(count))
    return attention_cached.attend_one(
        q, new, prompt, seen, ring, n, N, window=window, style=style
    )


def textbook(arrays, place, count, n, window, style=PLAIN):
    """Each row's keys in their order, and one softmax over them."""
    q, new, prompt, keys = jax.tree.map(lambda x: np.asarray(x, np.float64), arrays)
    keys = [x.reshape(P, N, H * G, -1, D)[:, n] for x in keys]
    U = keys[0].shape[-2]
    out = np.zeros(q.shape)
    for p, h, g, r in np.ndindex(P, H, G, R):
        own = [(place - age) % U for age in range(min(count[p], window - 1), 0, -1)]
        k, v = (
            np.concatenate(
                [a[p, h, : (2, S)[p]], b[p, h * G + g, own], c[p, h * G + g]]
            )
            for a, b, c in zip(prompt, keys, new, strict=True)
        )
        scores = k @ q[p, h, g, r, 0] / np.sqrt(style.scalar or D)
        if style.cap is not None:
            scores = style.cap * np.tanh(scores / style.cap)
        weight = np.exp(scores - scores.max())
        out[p, h, g, r, 0] = weight @ v / weight.sum()
    return out


# Of 300 keys, a ring of 3 blocks of 112; of 100, a single block.
CASES = [
    # Nothing yet, one token, all of a block, one more, all there can be.
    *((300, t, (t, t)) for t in (0, 1, 112, 113, 299)),
    *((100, t, (t, t)) for t in (0, 1, 99)),
    # Rows that began later than others; one that begins now; a ring gone round.
    (300, 150, (150, 3)),
    (300, 40, (0, 299)),
    (300, 112, (20, 299)),
    (100, 10, (60, 0)),
]


@pytest.mark.parametrize("window", [2**30, 50, 113, 1])
@pytest.mark.parametrize(("num_keys", "place", "count"), CASES)
def test_blocks_of_a_ring_are_one_softmax(num_keys, place, count, window):
    # A block left out or read twice, the oldest key in the new one's place, or what is
    # left of other samples would each be off by a tenth and more.
    arrays = inputs(num_keys)
    for n in range(N):
        got = attend(arrays, place, jnp.array(count), n, window)
        want = textbook(arrays, place, count, n, window)
        np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("num_keys", [100, 300])
def test_capped_scores_and_split_heads_are_the_same_law(num_keys):
    style = Scores(scalar=3.0, cap=1.5)
    count = (90, 40)
    arrays = inputs(num_keys, split=True)
    run = fakes.jit(lambda *x: _attend(*x, None, style))
    got = run(arrays, 90, jnp.array(count), 1)
    want = textbook(arrays, 90, count, 1, 2**30, style)
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("num_keys", [100, 300])
def test_bfloat16_is_as_exact_as_its_weights(num_keys):
    # Weights and the result are rounded to 8 bits, each by at most 2^-9; sums are not.
    arrays, count = inputs(num_keys, jnp.bfloat16), (99, 60)
    got = attend(arrays, 99, jnp.array(count), 0, 2**30)
    assert got.dtype == jnp.bfloat16
    want = textbook(arrays, 99, count, 0, 2**30)
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=1.5e-2)


def test_only_blocks_with_visible_keys_are_read():
    # NaN in a block that is read would come through: 0 x NaN is NaN.
    q, new, prompt, keys = inputs(300)
    poisoned = jax.tree.map(lambda x: x.at[:, :, 112:].set(jnp.nan), keys)
    arrays = (q, new, prompt, poisoned)
    for count, window, reads in [(112, 2**30, 1), (113, 2**30, 2), (20, 2**30, 1)]:
        out = attend(arrays, count, jnp.array([count, 0]), 0, window)
        assert bool(jnp.all(jnp.isfinite(out))) == (reads == 1)
    # The window's keys lie in the first block, gone round; older ones do not.
    assert bool(jnp.all(jnp.isfinite(attend(arrays, 60, jnp.array([299, 0]), 0, 50))))
    assert not bool(
        jnp.all(jnp.isfinite(attend(arrays, 40, jnp.array([299, 0]), 0, 50)))
    )


def test_a_ring_is_little_larger_than_its_keys_and_has_few_blocks():
    assert [attention_cached.block(n) for n in (1, 128, 129, 1023, 8191)] == [
        *(1, 128, 80, 128, 1024)
    ]
    for n in range(1, 3000):
        U, B = attention_cached.ring_size(n), attention_cached.block(n)
        assert n <= U < n + 128
        assert attention_cached.block(U) == B  # decoding knows U alone
        assert U % B == 0
        assert U // B <= 8
